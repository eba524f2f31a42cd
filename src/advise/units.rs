//! Numbers for people: sizes, rates, times, money, each with its unit and no more digits than it deserves.

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
/// Disks and networks are sold in powers of ten.
pub const GB: u64 = 1_000_000_000;

pub const SECONDS_PER_DAY: f64 = 86_400.0;

/// `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three significant digits, no exponent: `0.0123`, `1.23`, `12.3`, `1,234`.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        _ if size == 0.0 => return "0".to_owned(),
        _ if size >= 99.95 => return count(value.round() as u64),
        _ if size >= 9.995 => 1,
        _ if size >= 0.9995 => 2,
        _ if size >= 0.0995 => 3,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `12.5/s`.
pub fn rate(per_second: f64) -> String {
    format!("{}/s", number(per_second))
}

/// Memory, in powers of two.
pub fn memory(bytes: f64) -> String {
    let (divisor, unit) = match bytes {
        _ if bytes >= GIB as f64 * 0.9995 => (GIB, "GiB"),
        _ if bytes >= MIB as f64 * 0.9995 => (MIB, "MiB"),
        _ => (KIB, "KiB"),
    };
    format!("{} {unit}", number(bytes / divisor as f64))
}

/// What lies on disks or goes over wires, in powers of ten.
pub fn bytes(bytes: f64) -> String {
    let units = [(1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let unit = units.iter().find(|(size, _)| bytes >= size * 0.9995);
    match unit {
        Some((size, unit)) => format!("{} {unit}", number(bytes / size)),
        None => format!("{} B", number(bytes)),
    }
}

/// A network rate.
pub fn bits_per_second(bytes_per_second: f64) -> String {
    let bits = bytes_per_second * 8.0;
    match bits {
        _ if bits >= 1e9 => format!("{} Gbit/s", number(bits / 1e9)),
        _ if bits >= 1e6 => format!("{} Mbit/s", number(bits / 1e6)),
        _ => format!("{} kbit/s", number(bits / 1e3)),
    }
}

/// `12.5 %`.
pub fn percent(share: f64) -> String {
    format!("{} %", number(share * 100.0))
}

/// A size as settings take it: the largest unit that divides it.
pub fn setting_size(bytes: u64) -> String {
    let units = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    match units.iter().find(|(size, _)| bytes > 0 && bytes.is_multiple_of(*size)) {
        Some((size, unit)) => format!("{}{unit}", bytes / size),
        None => bytes.to_string(),
    }
}

/// Up to the next of 1, 2, 4, 8, ... `step`s.
pub fn doubling(value: f64, step: f64) -> f64 {
    let mut size = step;
    while size < value {
        size *= 2.0;
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let cases =
            [(0.0, "0"), (0.01234, "0.0123"), (1.0, "1"), (1.005, "1"), (9.999, "10"), (10.83, "10.8")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(99.96), "100");
        assert_eq!(number(1_234_567.0), "1,234,567");
        assert_eq!(
            (memory(512.0 * 1_048_576.0), memory(4.0 * 1_073_741_824.0)),
            ("512 MiB".into(), "4 GiB".into())
        );
        assert_eq!(
            (bytes(999.0), bytes(1_500.0), bytes(2.5e12)),
            ("999 B".into(), "1.5 kB".into(), "2.5 TB".into())
        );
        assert_eq!((bits_per_second(125.0), bits_per_second(1.25e8)), ("1 kbit/s".into(), "1 Gbit/s".into()));
        assert_eq!(
            (setting_size(64 * MIB), setting_size(3), setting_size(2 * GIB)),
            ("64MiB".into(), "3".into(), "2GiB".into())
        );
        assert_eq!((doubling(3.0, 1.0), doubling(0.0, 2.0), doubling(4.0, 1.0)), (4.0, 2.0, 4.0));
    }
}
