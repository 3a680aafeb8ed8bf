// A caller of picback: upload photos, submit a query, watch it to its end.
//
//   PICBACK_API_KEY=pbk_... node caller.mjs --query "dogs running on beaches" \
//       --callback http://127.0.0.1:8080/ PHOTO...

import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

// What makes a restart of the server invisible. Retrying is safe because every request that
// stores something brings a requestId: the same one twice is stored once.
const serviceConfig = {
  methodConfig: [
    {
      name: [{ service: "picback.v1.ImageService" }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.1s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "CANCELLED"],
      },
    },
  ],
};

const definition = protoLoader.loadSync("picback/v1/image_service.proto", {
  includeDirs: [fileURLToPath(new URL("../../protos", import.meta.url))],
  enums: String,
  longs: Number, // sizes in bytes: well below 2^53
  defaults: true,
});
const { ImageService } = grpc.loadPackageDefinition(definition).picback.v1;

const { values: options, positionals: photos } = parseArgs({
  allowPositionals: true,
  options: { query: { type: "string" }, callback: { type: "string" } },
});
if (photos.length === 0 || !options.query || !options.callback) {
  console.error("usage: node caller.mjs --query TEXT --callback URL PHOTO...");
  process.exit(2);
}

const client = new ImageService(
  process.env.PICBACK_ADDRESS ?? "127.0.0.1:50051",
  grpc.credentials.createInsecure(),
  { "grpc.service_config": JSON.stringify(serviceConfig) },
);
const metadata = new grpc.Metadata();
metadata.set("x-api-key", process.env.PICBACK_API_KEY ?? "");

const call = (method, request) =>
  promisify(client[method].bind(client))(request, metadata, { deadline: Date.now() + 30_000 });

try {
  for (const photo of photos) {
    const content = await readFile(photo);
    const { image } = await call("uploadImage", { content, requestId: randomUUID() });
    const tags = image.tags.map((tag) => `${tag.name} ${tag.confidence.toFixed(2)}`).join(", ");
    console.log(`${basename(photo)}: ${image.id} ${tags}`);
  }

  let { query } = await call("submitQuery", {
    text: options.query,
    callbackUrl: options.callback,
    requestId: randomUUID(),
  });
  // The stream brings the query after each change, and ends with its final state.
  for await (const change of client.watchQuery({ queryId: query.id }, metadata)) {
    query = change.query;
    console.log(`${query.id}: ${query.state}`);
  }
  console.log(`lemmas ${query.lemmas.join(", ")}; image ${query.match?.imageId ?? "none"}`);
  process.exitCode = query.state === "QUERY_STATE_DELIVERED" ? 0 : 1;
} catch (error) {
  console.error(`${grpc.status[error.code] ?? error.code}: ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
