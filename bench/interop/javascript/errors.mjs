// Shared by the runners of Node and of the browser. ort is ONNX Runtime's module, read returns a
// case's file as an ArrayBuffer: see case.py for the files and the answer.

const BATCH = 16;

export async function errors(ort, read, options) {
  const json = async (name) => JSON.parse(new TextDecoder().decode(await read(name)));
  const session = async (name) => ort.InferenceSession.create(new Uint8Array(await read(name)), options);

  async function ofTensors() {
    const { width, height } = await json("inputs.json");
    const tensors = new Float32Array(await read("tensors.f32"));
    const network = await session("autoencoder.onnx");
    const tensor = [];
    const one = 3 * width * height;
    for (let at = 0; at < tensors.length; at += BATCH * one) {
      const part = tensors.slice(at, at + BATCH * one);
      const image = new ort.Tensor("float32", part, [part.length / one, 3, height, width]);
      const { reconstruction_error } = await network.run({ image }, ["reconstruction_error"]);
      tensor.push(...reconstruction_error.data);
    }
    return { tensor };
  }

  async function ofImages() {
    const { images } = await json("inputs.json");
    const pixels = new Uint8Array(await read("pixels.rgb"));
    const network = await session("autoencoder_image.onnx");
    const found = { image: [], anomalous: [] };
    let at = 0;
    for (const { height, width } of images) {
      const image = new ort.Tensor("uint8", pixels.slice(at, at + height * width * 3), [height, width, 3]);
      at += height * width * 3;
      const { reconstruction_error, is_anomaly } = await network.run({ image }, ["reconstruction_error", "is_anomaly"]);
      found.image.push(reconstruction_error.data[0]);
      found.anomalous.push(Boolean(is_anomaly.data[0]));
    }
    return found;
  }

  const answer = { problems: {} };
  for (const [name, compute] of Object.entries({ tensor: ofTensors, image: ofImages })) {
    try {
      Object.assign(answer, await compute());
    } catch (problem) {
      answer.problems[name] = String(problem.message ?? problem).replace(/\s+/g, " ");
    }
  }
  return answer;
}
