// Receives what a sink of muniment-server pushes, and keeps each batch once: one line of a file. Node alone, no package.
//
// node receive_push.mjs PORT SECRET_FILE FILE          behind a proxy that speaks TLS, or on the server's machine

import { createHmac, timingSafeEqual } from "node:crypto";
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, truncateSync, writeSync } from "node:fs";
import { createServer } from "node:http";

const MOST_BYTES = 16 * 2 ** 20;
const MOST_SECONDS = 300;
const [port, secretFile, file] = process.argv.slice(2);
const secret = Buffer.from(readFileSync(secretFile, "utf8").trim());

function isSigned(timestamp, signatures, body) {
  if (!/^[0-9]+$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > MOST_SECONDS) return false;
  const wanted = Buffer.from("v1=" + createHmac("sha256", secret).update(`${timestamp}.`).update(body).digest("hex"));
  return signatures.split(",").some((text) => {
    const given = Buffer.from(text.trim());
    return given.length === wanted.length && timingSafeEqual(given, wanted);
  });
}

// What is kept: the ids, and up to where each sink has come. The last line may be torn, as after a crash.
const ids = new Set();
const stops = new Map();
const note = (batch) => {
  ids.add(batch.id);
  stops.set(`${batch.log}/${batch.sink}`, batch.stop);
};
if (existsSync(file)) {
  const kept = readFileSync(file);
  const end = kept.lastIndexOf("\n") + 1;
  truncateSync(file, end);
  for (const line of kept.subarray(0, end).toString("utf8").split("\n")) if (line) note(JSON.parse(line));
}
const out = openSync(file, "a", 0o600);
process.on("exit", () => closeSync(out));

function keep(body) {
  const batch = JSON.parse(body.toString("utf8"));
  if (ids.has(batch.id)) return 200; // it came again, because our answer was lost
  const expected = stops.get(`${batch.log}/${batch.sink}`);
  if (expected !== undefined && batch.start !== expected) return 409; // something is missing
  const line = Buffer.concat([body, Buffer.from("\n")]);
  for (let at = 0; at < line.length; ) at += writeSync(out, line, at);
  fsyncSync(out);
  note(batch);
  return 200;
}

createServer((request, response) => {
  const answer = (status) => response.writeHead(status, { "Content-Length": 0 }).end();
  const parts = [];
  let length = 0;
  request.on("data", (part) => {
    length += part.length;
    if (length > MOST_BYTES) answer(413) && request.destroy();
    else parts.push(part);
  });
  request.on("end", () => {
    const body = Buffer.concat(parts);
    const { "muniment-timestamp": timestamp = "", "muniment-signature": signatures = "" } = request.headers;
    answer(isSigned(timestamp, signatures, body) ? keep(body) : 401);
  });
}).listen(Number(port), "127.0.0.1");
