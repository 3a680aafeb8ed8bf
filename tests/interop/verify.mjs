// Verifies a callback with the public library: reads {"secret", "headers", "body"} (body in base64)
// from standard input and exits with 0 if the signature is good, 1 if not.
import { readFileSync } from "node:fs";
import { Webhook } from "standardwebhooks";

const { secret, headers, body } = JSON.parse(readFileSync(0, "utf8"));
try {
  new Webhook(secret).verify(Buffer.from(body, "base64").toString("utf8"), headers);
} catch (error) {
  console.error(String(error));
  process.exit(1);
}
