// Takes the webhooks of `muniment monitor`: checks the signature, drops what it has, and answers once it is kept.
//
//     MUNIMENT_WEBHOOK_SECRET_FILE=secret node webhook_receiver.mjs 8090 findings.jsonl
//
// Only Node itself is used. Behind a proxy that does TLS this is enough for production.
import { createHmac, timingSafeEqual } from "node:crypto";
import { existsSync, fsyncSync, openSync, readFileSync, writeSync } from "node:fs";
import { createServer } from "node:http";

const MAX_BODY = 1024 * 1024;
const MAX_AGE = 300; // seconds by which the clocks may differ: an older delivery may be a recorded copy

const [port, path] = process.argv.slice(2);
const secret = readFileSync(process.env.MUNIMENT_WEBHOOK_SECRET_FILE, "latin1").trim();
const lines = existsSync(path) ? readFileSync(path, "utf8").split("\n").filter(Boolean) : [];
const ids = new Set(lines.map((line) => JSON.parse(line).id));
const file = openSync(path, "a");

function isSigned(timestamp, header, body) {
  if (!/^[0-9]+$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > MAX_AGE) return false;
  const hmac = createHmac("sha256", Buffer.from(secret, "latin1")).update(`${timestamp}.`).update(body);
  const wanted = Buffer.from(`v1=${hmac.digest("hex")}`);
  return header.split(",").some((given) => {
    const found = Buffer.from(given.trim());
    return found.length === wanted.length && timingSafeEqual(found, wanted);
  });
}

function take(body) {
  const { id } = JSON.parse(body);
  if (ids.has(id)) return;
  writeSync(file, `${body.toString("utf8").trim()}\n`);
  fsyncSync(file); // on disk before 2xx: the monitor will not send it again
  ids.add(id);
}

const server = createServer((request, response) => {
  const parts = [];
  let size = 0;
  request.on("data", (part) => {
    size += part.length;
    if (size > MAX_BODY) request.destroy();
    parts.push(part);
  });
  request.on("end", () => {
    const body = Buffer.concat(parts);
    const header = (name) => String(request.headers[name] ?? "");
    const signed = isSigned(header("muniment-timestamp"), header("muniment-signature"), body);
    if (signed) take(body);
    response.writeHead(signed ? 204 : 401).end();
  });
});
server.listen(Number(port), "127.0.0.1", () => console.log(`listening on ${server.address().port}`));
