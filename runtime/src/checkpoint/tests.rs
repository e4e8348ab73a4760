use safetensors::tensor::TensorView;

use super::*;

fn write(path: &Path, names: &[&str]) {
    let data = [0_u8; 12];
    let view = || TensorView::new(Dtype::BF16, vec![2, 3], &data).expect("a view");
    let tensors: Vec<_> = names.iter().map(|name| (*name, view())).collect();
    std::fs::write(path, safetensors::serialize(tensors, None).expect("serialised")).expect("written");
}

fn error(result: Result<Checkpoint>) -> String {
    match result {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn shards_are_joined_and_checked_against_the_index() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write(&dir.path().join("a.safetensors"), &["x"]);
    write(&dir.path().join("b.safetensors"), &["y"]);
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#)
        .expect("written");
    let checkpoint = Checkpoint::open(dir.path()).expect("opened");
    assert_eq!(checkpoint.tensors().map(|t| t.name).collect::<Vec<_>>(), ["x", "y"]);
    assert!(checkpoint.matrix("y", 2, 3).is_ok());

    std::fs::write(&index, r#"{"weight_map": {"x": "b.safetensors"}}"#).expect("written");
    assert!(error(Checkpoint::open(dir.path())).contains("b.safetensors: tensor x: expected the tensor"));
    std::fs::write(&index, r#"{"weight_map": {"x": "../b.safetensors"}}"#).expect("written");
    assert!(error(Checkpoint::open(dir.path())).contains("weight_map: expected names of files"));
    std::fs::write(&index, r#"{"weight_map": {"x": "c.safetensors"}}"#).expect("written");
    assert!(error(Checkpoint::open(dir.path())).contains("c.safetensors: No such file"));
}

#[test]
fn shapes_types_and_names_are_checked() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write(&dir.path().join("model.safetensors"), &["x", "layers.0.rotary_emb.inv_freq"]);
    let checkpoint = Checkpoint::open(dir.path()).expect("opened");
    let message = |result: Result<MatrixView<'_>>| result.expect_err("an error").to_string();
    assert!(message(checkpoint.matrix("x", 3, 2)).contains("tensor x: expected shape [3, 2], found [2, 3]"));
    assert!(message(checkpoint.matrix("z", 3, 2)).contains("model.safetensors: tensor z: expected a tensor"));
    let used = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    let harmless = |name: &str| name.ends_with("rotary_emb.inv_freq");
    assert!(checkpoint.expect_all_used(&used(&["x"]), harmless).is_ok());
    let left = checkpoint.expect_all_used(&used(&[]), harmless).expect_err("x is left over").to_string();
    assert!(left.contains("tensor x: expected no tensor of this name"), "{left}");
}

#[test]
fn truncation_at_every_length_is_an_error() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.safetensors");
    write(&path, &["x"]);
    let whole = std::fs::read(&path).expect("read");
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).expect("written");
        let message = error(Checkpoint::open(dir.path()));
        assert!(message.contains("model.safetensors") && !message.contains('\n'), "{len}: {message}");
    }
}

#[test]
fn a_header_that_disagrees_with_itself_names_the_tensor() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.safetensors");
    let refusal = |y: &str| {
        let header = format!(
            r#"{{"__metadata__": {{"a": "b"}}, "x": {{"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}, "y": {y}}}"#
        );
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 24]].concat();
        std::fs::write(&path, bytes).expect("written");
        Checkpoint::open(dir.path()).err().map(|error| error.to_string())
    };
    assert_eq!(refusal(r#"{"dtype": "BF16", "shape": [6], "data_offsets": [12, 24]}"#), None);
    for (y, expected) in [
        (
            r#"{"dtype": "BF16", "shape": [2, 4], "data_offsets": [12, 24]}"#,
            "expected as many bytes as BF16 [2, 4] takes, found 12 (data_offsets 12 to 24)",
        ),
        (
            r#"{"dtype": "F32", "shape": [6], "data_offsets": [12, 24]}"#,
            "expected as many bytes as F32 [6] takes, found 12 (data_offsets 12 to 24)",
        ),
        (
            r#"{"dtype": "BF16", "shape": [4294967296, 4294967296, 4], "data_offsets": [12, 24]}"#,
            "expected as many bytes as BF16 [4294967296, 4294967296, 4] takes, found 12 (data_offsets 12 to 24)",
        ),
        (
            r#"{"dtype": "BF16", "shape": [6], "data_offsets": [10, 22]}"#,
            "expected data_offsets from 12, where the tensor before it ends, found 10 to 22",
        ),
        (
            r#"{"dtype": "BF16", "shape": [6], "data_offsets": [24, 12]}"#,
            "expected data_offsets from 12, where the tensor before it ends, found 24 to 12",
        ),
        (r#"{"dtype": "BF17", "shape": [6], "data_offsets": [12, 24]}"#, "found unknown variant `BF17`"),
        (
            r#"{"dtype": "BF16", "shape": [-6], "data_offsets": [12, 24]}"#,
            "found invalid value: integer `-6`",
        ),
    ] {
        let message = refusal(y).expect("a refusal");
        assert!(message.contains("model.safetensors: tensor y: expected "), "{message}");
        assert!(message.contains(expected), "{message}");
    }
    // Whole in itself, but of more bytes than there are.
    let message = refusal(r#"{"dtype": "BF16", "shape": [7], "data_offsets": [12, 26]}"#).expect("a refusal");
    assert!(message.contains("contents: expected a whole safetensors file (is it truncated?)"), "{message}");
}

#[test]
fn pickles_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    assert!(error(Checkpoint::open(dir.path())).contains("expected model.safetensors or"));
    std::fs::write(dir.path().join("pytorch_model.bin"), b"x").expect("written");
    assert!(
        error(Checkpoint::open(dir.path())).contains("pytorch_model.bin: format: expected model.safetensors")
    );
}
