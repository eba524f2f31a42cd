use std::time::Instant;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn gpt_4o() -> Estimator {
    Estimator::parse("tiktoken:gpt-4o").expect("the default estimator")
}

/// One token a character, so that expectations can be counted by hand.
fn letters() -> Estimator {
    Estimator::parse("chars:1").expect("known")
}

fn part(estimator: Estimator, part: serde_json::Value) -> u32 {
    estimator.measure("", &[&part.to_string()], None).parts[0]
}

#[test]
fn models_encodings_and_characters_are_estimators_and_nothing_else_is() {
    for name in ["tiktoken:gpt-4", "tiktoken:gpt2", "tiktoken:r50k_base", "tiktoken:ft:gpt-4o:org", "chars:4"]
    {
        assert!(Estimator::parse(name).is_ok(), "{name}");
    }
    for name in ["", "tiktoken", "tiktoken:", "tiktoken:llama", "chars:0", "chars:x", "chars:101", "gpt-4o"] {
        assert!(matches!(Estimator::parse(name), Err(LoadError::Unknown(_))), "{name}");
    }
}

#[test]
fn text_counts_as_published() {
    let estimator = gpt_4o();
    assert_eq!(estimator.count(""), 0);
    assert_eq!(estimator.count("hello world"), 2);
    assert_eq!(estimator.count("antidisestablishmentarianism"), 6);
    // Special tokens are text when a user types them.
    assert!(estimator.count("<|endoftext|>") > 1);
    assert_eq!(Estimator::parse("chars:4").expect("known").count("héllo"), 2);
}

#[test]
fn a_message_costs_its_framing_its_role_and_its_parts() {
    let text = r#"{"type":"text","text":"hello world"}"#;
    let measured = gpt_4o().measure("user", &[text, text], None);
    assert_eq!(measured, Measured { total: MESSAGE_OVERHEAD_TOKENS + 1 + 2 + 2, parts: vec![2, 2] });
    assert_eq!(gpt_4o().measure("user", &[], None).total, MESSAGE_OVERHEAD_TOKENS + 1);
}

#[test]
fn a_text_part_costs_its_text_whatever_stands_beside_it() {
    let estimator = letters();
    assert_eq!(part(estimator, json!({"type": "text", "text": "four"})), 4);
    assert_eq!(part(estimator, json!({"text": "a\nb\"", "type": "text", "state": "done", "n": [1]})), 4);
    assert_eq!(part(estimator, json!({"type": "thinking", "thinking": "hmm", "signature": "EqQBCg=="})), 3);
    // Duplicate members: the last one counts, as it does for other readers.
    assert_eq!(estimator.count_part(r#"{"type":"text","text":"long","text":"x"}"#), 1);
    assert_eq!(estimator.count_part(r#"{"type":"text","text":"\u00e9\ud83d\ude00"}"#), 2);
}

#[test]
fn a_tool_part_costs_its_compact_json() {
    let estimator = letters();
    let pretty = "{ \"type\": \"tool_call\",\n \"name\": \"lookup\", \"payload\": { \"sku\": \"A-19\" } }";
    assert_eq!(estimator.count_part(pretty), "name:lookup,payload:{\"sku\":\"A-19\"}".len() as u32);
    // JSON in a string is shown without the escapes of the JSON around it.
    let call = json!({"type": "tool-call", "arguments": "{\"a\":\"b\"}"});
    assert_eq!(part(estimator, call), "arguments:{\"a\":\"b\"}".len() as u32);
    // Text parts without text are parts like any other.
    assert_eq!(part(estimator, json!({"type": "text", "text": 5})), "text:5".len() as u32);
}

#[test]
fn binary_parts_cost_the_same_whatever_their_base64_text() {
    let estimator = gpt_4o();
    let base64 = "iVBORw0KGgo".repeat(1000);
    let url = format!("data:image/png;base64,{base64}");
    for image in [
        json!({"type": "image", "image": base64}),
        json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64}}),
        json!({"type": "image_url", "image_url": {"url": url}}),
        json!({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}),
        json!({"type": "file", "mediaType": "image/png", "url": url, "filename": "a.png"}),
    ] {
        assert_eq!(part(estimator, image.clone()), 765, "{image}");
    }
    assert_eq!(part(estimator, json!({"type": "image_url", "image_url": {"url": url, "detail": "low"}})), 85);
    assert_eq!(
        part(estimator, json!({"type": "image", "image": base64, "width": 1024, "height": 1024})),
        765
    );
    assert_eq!(part(estimator, json!({"type": "image", "image": url, "width": 4096, "height": 8192})), 1105);
}

#[test]
fn files_cost_by_class_and_size() {
    let estimator = letters();
    let base64 = "AAAA".repeat(1_000); // 3,000 bytes
    let file = |media_type: &str| json!({"type": "file", "mediaType": media_type, "data": base64});
    assert_eq!(part(estimator, file("application/pdf")), 60);
    assert_eq!(part(estimator, file("text/csv")), 750);
    assert_eq!(part(estimator, file("audio/wav")), 2);
    assert_eq!(part(estimator, json!({"type": "file", "file_id": "file-7"})), 1_500);
    let document = json!({"type": "document", "source": {"type": "text", "data": "plain words"}});
    assert_eq!(part(estimator, document), 3);
}

#[test]
fn base64_within_a_tool_result_is_not_text_but_long_words_are() {
    let estimator = letters();
    let base64: String = "aB3/".repeat(500); // 1,500 bytes
    let result = |content: serde_json::Value| json!({"type": "tool_result", "content": content});
    let empty = part(estimator, result(json!([null])));
    assert_eq!(part(estimator, result(json!([base64]))), empty + 30);
    let picture = json!([{"type": "image", "source": {"data": base64}}]);
    assert_eq!(part(estimator, result(picture)), empty + 765);
    assert_eq!(part(estimator, result(json!(["f0".repeat(500)]))), empty - 4 + 1_002);
}

#[test]
fn a_given_count_is_kept_and_spread() {
    let text = r#"{"type":"text","text":"hello world"}"#;
    let image = r#"{"type":"image","url":"https://example.org/a.png"}"#;
    let one = letters().measure("user", &[text], Some(77));
    assert_eq!(one, Measured { total: 77, parts: vec![77] });
    let two = letters().measure("user", &[text, image], Some(800));
    assert_eq!(two.total, 800);
    assert!(two.parts[0] < 10 && two.parts[0] + two.parts[1] == 800, "{two:?}");
    assert_eq!(letters().measure("user", &[], Some(5)).parts, Vec::<u32>::new());
}

#[test]
fn long_text_is_counted_in_chunks_that_change_next_to_nothing() {
    let estimator = gpt_4o();
    let text = "The quick brown fox jumps over the lazy dog, again and again. ".repeat(2_000);
    let whole = tiktoken_rs::o200k_base_singleton().count_ordinary(&text) as u32;
    assert!(estimator.count(&text).abs_diff(whole) <= 8, "{} {whole}", estimator.count(&text));
}

#[test]
fn texts_made_to_hurt_the_tokenizer_are_counted_in_bounded_time() {
    let estimator = gpt_4o();
    let bytes = 512 << 10;
    for unit in ["a", "A", " ", "\n", "\t ", "0", "!", "aA", "' ", "é", "字", "\u{200d}", "\u{0301}", "😀"]
    {
        let text = unit.repeat(bytes / unit.len());
        let started = Instant::now();
        let tokens = estimator.count(&text);
        assert!(tokens > 0 && tokens as usize <= text.len(), "{unit:?}: {tokens}");
        assert!(started.elapsed().as_secs() < 20, "{unit:?} took {:?}", started.elapsed());
    }
}

#[test]
fn a_panic_of_the_tokenizer_gives_an_estimate() {
    // Given whole, so many spaces overflow the stack of the tokenizer's regular expression.
    let text = " ".repeat(4 << 20);
    let bpe = tiktoken_rs::o200k_base_singleton();
    assert!(catch_unwind(AssertUnwindSafe(|| bpe.count_ordinary(&text))).is_err());
    assert_eq!(count_contained(bpe, &text), 1 << 20);
}

proptest! {
    #[test]
    fn shares_of_a_given_count_add_up_to_it(total in any::<u32>(), texts in prop::collection::vec(".{0,40}", 1..8)) {
        let parts: Vec<String> = texts.iter().map(|text| json!({"type": "text", "text": text}).to_string()).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let shares = spread(total, &parts);
        prop_assert_eq!(shares.iter().map(|share| u64::from(*share)).sum::<u64>(), u64::from(total));
    }

    #[test]
    fn any_text_is_a_part_that_can_be_counted(text in "\\PC{0,60}") {
        letters().count_part(&text);
        letters().count_part(&json!({"type": "tool_result", "content": [text, {"type": "image", "data": text}]}).to_string());
    }

    #[test]
    fn chunks_are_the_text(text in "[ a-c字]{0,200}", times in 1usize..600) {
        let text = text.repeat(times);
        prop_assert_eq!(chunks(&text).collect::<String>(), text.clone());
        prop_assert!(chunks(&text).all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_BYTES_MAX));
    }
}
