//! A calibration measures, leaves nothing behind but its file, and plans take it.

use std::fs;

use fastpaca::advise::figures::Calibration;
use serde_json::Value;

use super::support::test_dir;
use super::{advise, said};

#[test]
fn a_calibration_is_taken_by_plans() {
    let dir = test_dir();
    let (file, work) = (dir.path().join("calibration.toml"), dir.path().join("work"));
    fs::create_dir(&work).unwrap();
    let (file, work) = (file.to_str().unwrap(), work.to_str().unwrap());
    let text = said(&["calibrate", "--seconds", "5", "--dir", work, "--output", file]);
    assert!(text.contains("appends_per_core_second = ") && text.contains(file), "{text}");
    assert_eq!(fs::read_dir(work).unwrap().count(), 0, "what was measured on is removed");

    let measured = Calibration::parse(file, &fs::read_to_string(file).unwrap()).unwrap();
    assert!(measured.fsync_p50_ms <= measured.fsync_p99_ms, "{measured:?}");
    // A lone append takes at least a block of the journal, and one among many no more than that.
    assert!(measured.stored_bytes_per_message_alone >= 4_096.0, "{measured:?}");
    assert!(
        measured.stored_bytes_per_message_busy <= measured.stored_bytes_per_message_alone,
        "{measured:?}"
    );

    let plan: Value =
        serde_json::from_str(&said(&["plan", "--calibration", file, "--format", "json"])).unwrap();
    assert_eq!(plan["figures"]["measured_on"], measured.measured_on);
    let tokens = plan["figures"]["tokens_per_core_second"].as_f64().unwrap();
    assert!((tokens / measured.tokens_per_core_second - 1.0).abs() < 1e-9, "{tokens}");
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let calibrate = |dir: &str| {
        let output = advise(&["calibrate", "--dir", dir, "--seconds", "5"]);
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(line.lines().count(), 1, "{line}");
        (output.status.code(), line)
    };
    let (code, line) = calibrate("/proc");
    assert!(code == Some(1) && line.starts_with("fastpaca: calibrating: /proc/"), "{line}");
    let dir = test_dir();
    let nowhere = dir.path().join("nowhere");
    let (code, line) = calibrate(nowhere.to_str().unwrap());
    assert!(code == Some(2) && line.starts_with("fastpaca: --dir "), "{line}");
    assert!(!nowhere.exists());
}
