use serde_json::{Value, json};

use super::super::samples::*;

#[test]
fn a_plain_one_is_read() {
    let tokenizer = outcome(&tokenizer(|_| {})).expect("a tokenizer");
    assert_eq!(tokenizer.encode("ab a", false).expect("ids").get_ids(), [3, 2, 0]);
}

#[test]
fn padding_and_truncation_are_left_out() {
    let bytes = tokenizer(|file| {
        file["truncation"] =
            json!({ "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0 });
        file["padding"] = json!({
            "strategy": { "Fixed": 10_000_000_000_u64 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
        });
    });
    let tokenizer = outcome(&bytes).expect("a tokenizer");
    assert_eq!(tokenizer.encode("ab a", false).expect("ids").get_ids(), [3, 2, 0]);
}

#[test]
fn hostile_ones_are_refused_in_a_line() {
    let doubling = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" });
    let bomb = json!({ "type": "Sequence", "normalizers": vec![doubling.clone(); 40] });
    let decoding = json!({ "type": "Sequence", "decoders": vec![doubling; 40] });
    let cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"{}".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        b"{\"model\": \"\xff\"}".to_vec(),
        "[".repeat(200_000).into_bytes(),
        format!("{{\"model\": {}", "[".repeat(200_000)).into_bytes(),
        tokenizer(|file| file["model"] = json!({ "type": "Oracle" })),
        tokenizer(|file| file["model"]["merges"] = json!([["a", "x"]])),
        tokenizer(|file| file["model"]["merges"] = json!(["a b c"])),
        tokenizer(|file| file["model"]["vocab"]["a"] = json!(-1)),
        tokenizer(|file| file["model"]["vocab"]["a"] = json!(1_u64 << 40)),
        tokenizer(|file| file["model"] = json!({ "type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]] })),
        tokenizer(|file| file["model"] = json!({ "type": "WordLevel", "vocab": {}, "unk_token": "x" })),
        tokenizer(|file| {
            file["pre_tokenizer"] = json!({
                "type": "Split", "pattern": { "Regex": "(" }, "behavior": "Isolated", "invert": false,
            });
        }),
        tokenizer(|file| {
            file["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" })
        }),
        tokenizer(|file| {
            file["post_processor"] = json!({
                "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "x", "type_id": 0 } }],
                "pair": [], "special_tokens": {},
            });
        }),
        tokenizer(|file| file["normalizer"] = bomb.clone()),
        tokenizer(|file| file["decoder"] = decoding.clone()),
    ];
    for (index, bytes) in cases.iter().enumerate() {
        let refusal = outcome(bytes).err().unwrap_or_else(|| panic!("case {index} was taken"));
        assert!(refusal.contains("tokenizer.json: "), "{index}: {refusal}");
        assert!(!refusal.contains('\n'), "{index}: {refusal}");
    }
}

#[test]
fn steps_that_grow_without_end_are_refused_by_name() {
    let (pre, norm) = ("pretokenizers", "normalizers");
    let nested = |list: &str, step: Value| {
        sequence(
            list,
            vec![sequence(list, vec![step.clone()]), sequence(list, vec![sequence(list, vec![step])])],
        )
    };
    // An expression that matches nothing puts its content between any two bytes.
    let between = json!({ "type": "Replace", "pattern": { "Regex": "" }, "content": "a".repeat(256) });
    let ahead = json!({ "type": "Replace", "pattern": { "Regex": "a(?=[\\s\\S]{4200})" }, "content": "b".repeat(17) });
    // Without its name the library reads it all the same, and by another name too.
    let unnamed = json!({ "pattern": { "String": "a" }, "content": "aa" });
    let cases = [
        (
            "pre_tokenizer",
            sequence(pre, vec![byte_level(); 2]),
            "expected ByteLevel once at most, found 2 of them",
        ),
        (
            "pre_tokenizer",
            sequence(pre, vec![split(" "), byte_level(), byte_level(), byte_level()]),
            "found 3 of them",
        ),
        ("pre_tokenizer", nested(pre, byte_level()), "expected ByteLevel once at most, found 2 of them"),
        ("pre_tokenizer", nested(pre, metaspace()), "expected Metaspace once at most, found 2 of them"),
        // A character of four bytes for a space, and that by its bytes.
        (
            "pre_tokenizer",
            sequence(pre, vec![metaspace(), byte_level()]),
            "expected steps that make a text at most 5 times longer, found 20 times",
        ),
        ("pre_tokenizer", sequence(pre, vec![split("a"); 65]), "expected at most 64 steps, found 65"),
        (
            "normalizer",
            sequence(norm, vec![json!({ "type": "ByteLevel" }); 2]),
            "expected ByteLevel once at most",
        ),
        (
            "normalizer",
            sequence(norm, vec![charsmap(b'a', "aa"), charsmap(b'a', "aa")]),
            "expected Precompiled once at most",
        ),
        ("normalizer", charsmap(b'a', &"a".repeat(257)), "at most 256 times longer, found 257 times"),
        ("normalizer", json!({ "type": "Prepend", "prepend": "a".repeat(256) }), "found 257 times"),
        ("normalizer", json!({ "prepend": "a".repeat(256) }), "found 257 times"),
        ("normalizer", sequence(norm, vec![replace("a", "aa"); 9]), "found 512 times"),
        ("normalizer", sequence(norm, vec![unnamed; 9]), "found 512 times"),
        ("normalizer", between.clone(), "found 257 times"),
        ("normalizer", replace("", &"a".repeat(256)), "found 257 times"),
        // Longer than what is looked at of a text at a time, or looking further.
        (
            "normalizer",
            replace(&"a".repeat(5000), &"b".repeat(600_000)),
            "expected at most 256 bytes to replace, found 5000",
        ),
        ("normalizer", ahead, "expected at most 16 bytes where an expression matches, found 17"),
        ("normalizer", sequence(norm, vec![json!({ "type": "Lowercase" }); 65]), "expected at most 64 steps"),
        ("decoder", between, "found 257 times"),
        ("decoder", sequence("decoders", vec![byte_level(); 2]), "expected ByteLevel once at most"),
        (
            "decoder",
            sequence("decoders", vec![json!({ "type": "BPEDecoder", "suffix": "" }); 6]),
            "found 729 times",
        ),
        (
            "decoder",
            sequence(
                "decoders",
                vec![
                    json!({ "type": "CTC", "pad_token": "a", "word_delimiter_token": "", "cleanup": true });
                    6
                ],
            ),
            "found 729 times",
        ),
        (
            "post_processor",
            template(json!([the_text("A"), the_text("A")])),
            "expected the text once, found it 2 times",
        ),
        ("post_processor", template(json!([special()])), "expected the text once, found it 0 times"),
        ("post_processor", template(json!([the_text("A"), the_text("B")])), "a second text 1 times"),
        (
            "post_processor",
            sequence("processors", vec![template(json!([the_text("A")])); 2]),
            "expected TemplateProcessing once at most",
        ),
        (
            "post_processor",
            template(Value::Array([vec![special(); 65], vec![the_text("A")]].concat())),
            "expected at most 64 tokens round a text, found 65",
        ),
        (
            "post_processor",
            json!({ "type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 4] }),
            "expected tokens of the vocabulary, found 4",
        ),
    ];
    for (field, value, said) in cases {
        let bytes = tokenizer(|file| file[field] = value.clone());
        let refusal = outcome(&bytes).err().unwrap_or_else(|| panic!("taken: {value}"));
        assert!(refusal.contains(&format!("tokenizer.json: {field}: expected ")), "{refusal}");
        assert!(refusal.contains(said) && !refusal.contains('\n'), "{refusal}, not {said}");
    }
}

#[test]
fn models_that_copy_or_square_are_refused_by_name() {
    let long = "u".repeat(65);
    let pieces = |max: u64, unknown: &str| {
        json!({
            "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##", "max_input_chars_per_word": max,
            "vocab": { "a": 0, unknown: 1 },
        })
    };
    let plain = tokenizer(|_| {});
    let plain: Value = serde_json::from_slice(&plain).expect("JSON");
    let pairs = |name: &str, value: Value| {
        let mut model = plain["model"].clone();
        model[name] = value;
        model
    };
    let cases = [
        (pairs("unk_token", json!(long)), "model.unk_token: expected at most 64 bytes, found 65"),
        (
            pairs("end_of_word_suffix", json!(long)),
            "model.end_of_word_suffix: expected at most 64 bytes, found 65",
        ),
        (pieces(100, &long), "model.unk_token: expected at most 64 bytes, found 65"),
        (pieces(1001, "u"), "model.max_input_chars_per_word: expected at most 1000 characters, found 1001"),
        (
            json!({ "type": "WordLevel", "vocab": { "a": 0, "b": 1, " ": 2, "u": 3 }, "unk_token": long }),
            "model.unk_token: expected at most 64 bytes, found 65",
        ),
        (
            pairs("vocab", json!({ "a": 0, "b": 1, " ": 2, "ab": 3, "c".repeat(4096): 1 })),
            "model.vocab: expected a number of its own for each token, found 1 for two",
        ),
        (
            pairs("vocab", json!({ "a": 0, "b": 1, " ": 2, "ab": 3, "c".repeat(4097): 4 })),
            "vocabulary: expected tokens of at most 4096 bytes, found 4097",
        ),
        (
            pairs("dropout", json!(0.5)),
            "model.dropout: expected none: a text has the same tokens each time, found 0.5",
        ),
    ];
    for (model, said) in cases {
        let refusal = outcome(&tokenizer(|file| file["model"] = model.clone())).err();
        let refusal = refusal.unwrap_or_else(|| panic!("taken: {model}"));
        assert!(refusal.contains(&format!("tokenizer.json: {said}")), "{refusal}, not {said}");
    }
    // Normalised when the file is read: one of a kilobyte is 256 kilobytes.
    let bytes = tokenizer(|file| {
        file["normalizer"] = replace("a", &"a".repeat(256));
        let added = |id: usize| {
            json!({ "id": 4 + id, "content": format!("{id}{}", "a".repeat(1000)), "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": true, "special": false })
        };
        file["added_tokens"] = (0..300).map(added).collect();
    });
    let refusal = outcome(&bytes).expect_err("a refusal");
    assert!(
        refusal.contains("tokenizer.json: added_tokens: expected at most 67108864 bytes, normalised"),
        "{refusal}"
    );
}

#[test]
fn what_real_checkpoints_have_is_read() {
    let words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let behind = |steps: Vec<Value>| sequence("pretokenizers", [steps, vec![byte_level()]].concat());
    let punctuation = json!({ "type": "Punctuation", "behavior": "Contiguous" });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let around = template(json!([special(), the_text("A")]));
    let bert = json!({
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true,
    });
    let spaces = json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": "▁" });
    let files = [
        // GPT-2, Llama 3, Qwen, StarCoder, Falcon.
        of_bytes(|file| file["post_processor"] = byte_level()),
        of_bytes(|file| {
            file["pre_tokenizer"] = behind(vec![split(words)]);
            file["post_processor"] = sequence("processors", vec![byte_level(), around.clone()]);
        }),
        of_bytes(|file| {
            file["normalizer"] = json!({ "type": "NFC" });
            file["pre_tokenizer"] = behind(vec![split(words)]);
        }),
        of_bytes(|file| file["pre_tokenizer"] = behind(vec![digits.clone()])),
        of_bytes(|file| {
            let steps = vec![punctuation.clone(), byte_level(), digits.clone(), split("[0-9][0-9][0-9]")];
            file["pre_tokenizer"] = sequence("pretokenizers", steps);
        }),
        // RoBERTa, Llama 2, BERT, T5.
        of_bytes(|file| {
            file["post_processor"] = json!({
                "type": "RobertaProcessing", "sep": ["!", 0], "cls": ["\"", 1], "trim_offsets": true, "add_prefix_space": false,
            });
        }),
        with_fallback(|file| file["post_processor"] = around.clone()),
        tokenizer(|file| {
            file["normalizer"] = bert;
            file["pre_tokenizer"] = json!({ "type": "BertPreTokenizer" });
            file["post_processor"] = json!({ "type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 1] });
            file["decoder"] = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
            file["model"] = json!({
                "type": "WordPiece", "unk_token": "u", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                "vocab": { "a": 0, "b": 1, "u": 2 },
            });
        }),
        tokenizer(|file| {
            // The longest of NFKC: eighteen characters for one.
            file["normalizer"] = sequence("normalizers", vec![charsmap(b'b', &"a".repeat(33)), spaces]);
            file["pre_tokenizer"] =
                sequence("pretokenizers", vec![json!({ "type": "WhitespaceSplit" }), metaspace()]);
            file["post_processor"] = template(json!([the_text("A"), special()]));
            file["decoder"] = metaspace();
            file["model"] = json!({ "type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁", -1.0], ["a", -2.0]] });
        }),
    ];
    for (index, bytes) in files.iter().enumerate() {
        let read = outcome(bytes).unwrap_or_else(|refusal| panic!("{index}: {refusal}"));
        assert!(!read.encode("a b", true).expect("ids").is_empty(), "{index}");
    }
    // The rules are really applied.
    let last = outcome(&files[8]).expect("a tokenizer");
    assert_eq!(last.encode("b", false).expect("ids").len(), 34);
}
