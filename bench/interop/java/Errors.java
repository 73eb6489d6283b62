import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import com.google.gson.Gson;
import com.google.gson.JsonObject;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** The runner of ONNX Runtime for Java: see case.py for the files and the answer. */
public class Errors {
    static final int BATCH = 16;

    final OrtEnvironment environment = OrtEnvironment.getEnvironment();
    final Map<String, Object> answer = new LinkedHashMap<>();
    final Path folder;
    final JsonObject inputs;

    Errors(Path folder) throws Exception {
        this.folder = folder;
        inputs = new Gson().fromJson(Files.readString(folder.resolve("inputs.json")), JsonObject.class);
    }

    OrtSession session(String name) throws OrtException {
        var options = new OrtSession.SessionOptions();
        options.setIntraOpNumThreads(2);
        return environment.createSession(folder.resolve(name).toString(), options);
    }

    /** Copies bytes from at to at + size to a direct buffer, which the runtime reads without a copy. */
    static ByteBuffer direct(byte[] bytes, int at, int size) {
        return ByteBuffer.allocateDirect(size).order(ByteOrder.LITTLE_ENDIAN).put(bytes, at, size).flip();
    }

    void tensors() throws Exception {
        long width = inputs.get("width").getAsLong(), height = inputs.get("height").getAsLong();
        byte[] tensors = Files.readAllBytes(folder.resolve("tensors.f32"));
        int one = Math.toIntExact(4 * 3 * width * height);
        List<Float> errors = new ArrayList<>();
        try (var session = session("autoencoder.onnx")) {
            for (int at = 0; at < tensors.length; at += BATCH * one) {
                int size = Math.min(BATCH * one, tensors.length - at);
                FloatBuffer values = direct(tensors, at, size).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
                long[] shape = {size / one, 3, height, width};
                try (var image = OnnxTensor.createTensor(environment, values, shape);
                        var result = session.run(Map.of("image", image), Set.of("reconstruction_error"))) {
                    for (float error : (float[]) result.get(0).getValue()) {
                        errors.add(error);
                    }
                }
            }
        }
        answer.put("tensor", errors);
    }

    void images() throws Exception {
        byte[] pixels = Files.readAllBytes(folder.resolve("pixels.rgb"));
        List<Float> errors = new ArrayList<>();
        List<Boolean> anomalous = new ArrayList<>();
        int at = 0;
        try (var session = session("autoencoder_image.onnx")) {
            for (var element : inputs.getAsJsonArray("images")) {
                long height = element.getAsJsonObject().get("height").getAsLong();
                long width = element.getAsJsonObject().get("width").getAsLong();
                int size = Math.toIntExact(height * width * 3);
                long[] shape = {height, width, 3};
                try (var image = OnnxTensor.createTensor(environment, direct(pixels, at, size), shape, OnnxJavaType.UINT8);
                        var result = session.run(Map.of("image", image), Set.of("reconstruction_error", "is_anomaly"))) {
                    errors.add(((float[]) result.get("reconstruction_error").get().getValue())[0]);
                    anomalous.add(((boolean[]) result.get("is_anomaly").get().getValue())[0]);
                }
                at += size;
            }
        }
        answer.put("image", errors);
        answer.put("anomalous", anomalous);
    }

    interface Part {
        void run() throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        var errors = new Errors(Path.of(arguments[0]));
        var problems = new LinkedHashMap<String, String>();
        errors.answer.put("version", errors.environment.getVersion());
        errors.answer.put("problems", problems);
        Map<String, Part> parts = Map.of("tensor", errors::tensors, "image", errors::images);
        for (var part : parts.entrySet()) {
            try {
                part.getValue().run();
            } catch (OrtException | java.io.IOException problem) {
                problems.put(part.getKey(), String.valueOf(problem.getMessage()).replaceAll("\\s+", " "));
            }
        }
        System.out.print(new Gson().toJson(errors.answer));
    }
}
