//! The runner of tract: see case.py for the files and the answer.

use std::fs;
use std::path::Path;

use serde_json::{json, Map, Value};
use tract_onnx::prelude::*;

const BATCH: usize = 16;

/// The manifest, which pins tract's version.
const MANIFEST: &str = include_str!("../Cargo.toml");

fn inputs(case: &Path) -> TractResult<Value> {
    Ok(serde_json::from_slice(&fs::read(case.join("inputs.json"))?)?)
}

fn size(of: &Value, name: &str) -> usize {
    of[name].as_u64().unwrap_or(0) as usize
}

fn tensors(case: &Path) -> TractResult<Value> {
    let read = inputs(case)?;
    let (width, height) = (size(&read, "width"), size(&read, "height"));
    let network = tract_onnx::onnx()
        .model_for_path(case.join("autoencoder.onnx"))?
        .with_outputs_by_name(["reconstruction_error"])?
        .into_optimized()?
        .into_runnable()?;
    let values: Vec<f32> = fs::read(case.join("tensors.f32"))?
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let one = 3 * width * height;
    let mut errors = vec![];
    for part in values.chunks(BATCH * one) {
        let image = Tensor::from_shape(&[part.len() / one, 3, height, width], part)?;
        let result = network.run(tvec!(image.into()))?;
        errors.extend_from_slice(result[0].cast_to::<f32>()?.try_as_plain_ram()?.as_slice::<f32>()?);
    }
    Ok(json!({ "tensor": errors }))
}

/// tract's Resize needs a fixed input size, so the network is built for each image.
fn images(case: &Path) -> TractResult<Value> {
    let read = tract_onnx::onnx()
        .model_for_path(case.join("autoencoder_image.onnx"))?
        .with_outputs_by_name(["reconstruction_error", "is_anomaly"])?;
    let pixels = fs::read(case.join("pixels.rgb"))?;
    let (mut at, mut errors, mut verdicts) = (0, vec![], vec![]);
    for image in inputs(case)?["images"].as_array().into_iter().flatten() {
        let (height, width) = (size(image, "height"), size(image, "width"));
        let rgb = &pixels[at..at + height * width * 3];
        at += rgb.len();
        let network = read
            .clone()
            .with_input_fact(0, u8::fact([height, width, 3]).into())?
            .into_optimized()?
            .into_runnable()?;
        let result = network.run(tvec!(Tensor::from_shape(&[height, width, 3], rgb)?.into()))?;
        errors.push(result[0].try_as_plain_ram()?.as_slice::<f32>()?[0]);
        verdicts.push(result[1].try_as_plain_ram()?.as_slice::<bool>()?[0]);
    }
    Ok(json!({ "image": errors, "anomalous": verdicts }))
}

fn main() {
    let case = std::env::args_os().nth(1).expect("the case's folder");
    let mut answer = Map::new();
    let mut problems = Map::new();
    let parts: [(&str, fn(&Path) -> TractResult<Value>); 2] = [("tensor", tensors), ("image", images)];
    for (name, compute) in parts {
        match compute(Path::new(&case)) {
            Ok(Value::Object(found)) => answer.extend(found),
            Ok(_) => unreachable!("parts answer with objects"),
            Err(problem) => {
                let line = format!("{problem:#}").split_whitespace().collect::<Vec<_>>().join(" ");
                problems.insert(name.into(), line.into());
            }
        }
    }
    let version = MANIFEST.split("tract-onnx").nth(1).and_then(|s| s.split(['=', '"', ',']).find(|s| s.starts_with(|c: char| c.is_ascii_digit())));
    answer.insert("version".into(), version.unwrap_or("").into());
    answer.insert("problems".into(), problems.into());
    print!("{}", Value::Object(answer));
}
