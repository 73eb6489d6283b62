// The runner of ONNX Runtime for Node.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import ort from "onnxruntime-node";
import { errors } from "./errors.mjs";

const read = async (name) => {
  const bytes = await readFile(join(process.argv[2], name));
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
};
const answer = await errors(ort, read, { intraOpNumThreads: 2 });
process.stdout.write(JSON.stringify({ version: ort.env.versions.node, ...answer }));
