// A receiver of picback's callbacks that needs Node only.
//
//   PICBACK_SIGNING_SECRET=whsec_... node receiver.mjs 8080
//
// It checks the signature before it looks at anything else, handles every webhook-id once,
// and answers 204. picback tries again after any other answer.

import { createHmac, timingSafeEqual } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { createServer } from "node:http";

const maxBodyBytes = 30_000_000; // an image of 20 MB in base64, and some facts
const tolerance = 300; // seconds that clocks may differ; source: Standard Webhooks
const endings = {
  "image/jpeg": ".jpg",
  "image/png": ".png",
  "image/webp": ".webp",
  "image/gif": ".gif",
};

const secret = process.env.PICBACK_SIGNING_SECRET;
if (!secret) {
  console.error("set PICBACK_SIGNING_SECRET");
  process.exit(2);
}
const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");

// Yours belongs into the database that handle() writes to, in the same transaction.
const handled = new Set();

/** Whether `body` was signed with our key, now. */
function isSigned(headers, body) {
  const { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": tokens } = headers;
  if (!id || !tokens || !/^\d{1,12}$/.test(timestamp ?? "")) return false;
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > tolerance) return false;
  const expected = createHmac("sha256", key).update(`${id}.${timestamp}.`).update(body).digest();
  // After a rotation of secrets there is one signature for each.
  return tokens.split(" ").some((token) => {
    const [version, signature] = token.split(",");
    const given = Buffer.from(signature ?? "", "base64");
    return version === "v1" && given.length === expected.length && timingSafeEqual(given, expected);
  });
}

/** Print what a callback says, and write its picture to the current folder. */
async function handle(id, { data, result }) {
  if (result === null) {
    console.log(`"${data.text}": nothing matches`);
    return;
  }
  // The id is a name that can be trusted, because the signature covers it.
  const path = id + (endings[data.image.media_type] ?? ".bin");
  await writeFile(path, Buffer.from(result, "base64"));
  const tags = data.matched_tags.map((tag) => tag.name).join(", ");
  console.log(`"${data.text}": ${path} (${tags}; score ${data.score})`);
}

async function answer(request) {
  // Node reads no further than content-length, so that this bounds the body.
  if (!(Number(request.headers["content-length"] ?? NaN) <= maxBodyBytes)) return 413;
  const body = Buffer.concat(await request.toArray());
  if (!isSigned(request.headers, body)) return 401;
  const id = request.headers["webhook-id"];
  if (handled.has(id)) return 204;
  await handle(id, JSON.parse(body));
  handled.add(id);
  return 204;
}

const server = createServer(async (request, response) => {
  let status = 500; // whatever goes wrong, the sender must try again
  try {
    status = await answer(request);
  } catch (error) {
    console.error(error.message);
  }
  response.writeHead(status).end();
});
server.listen(Number(process.argv[2] ?? 8080), "127.0.0.1", () => {
  console.log(`receiving on http://127.0.0.1:${server.address().port}/`);
});
