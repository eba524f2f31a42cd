//! Timestamps: RFC 3339 in UTC with milliseconds, `2026-01-31T23:59:59.999Z`.
//!
//! Every event of a page carries one, so they are written by hand; the calendar arithmetic is Howard Hinnant's
//! `civil_from_days` (<https://howardhinnant.github.io/date_algorithms.html>).

const DAY_MS: u64 = 86_400_000;
/// The last instant with a year of four digits; later ones are shown as this one.
const LAST_MS: u64 = 253_402_300_799_999;

/// Appends the timestamp of `ms` milliseconds since 1970, without quotes.
pub(crate) fn push_rfc3339(out: &mut Vec<u8>, ms: u64) {
    let ms = ms.min(LAST_MS);
    let (year, month, day) = civil_from_days(ms / DAY_MS);
    let in_day = ms % DAY_MS;
    let mut text = *b"0000-00-00T00:00:00.000Z";
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], in_day / 3_600_000);
    digits(&mut text[14..16], in_day / 60_000 % 60);
    digits(&mut text[17..19], in_day / 1_000 % 60);
    digits(&mut text[20..23], in_day % 1_000);
    out.extend_from_slice(&text);
}

fn digits(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Days since 1970-01-01 to (year, month, day).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(ms: u64) -> String {
        let mut out = Vec::new();
        push_rfc3339(&mut out, ms);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn known_instants() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(951_782_400_001), "2000-02-29T00:00:00.001Z");
        assert_eq!(text(LAST_MS), "9999-12-31T23:59:59.999Z");
        assert_eq!(text(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    proptest! {
        #[test]
        fn agrees_with_a_calendar_library(ms in 0..LAST_MS) {
            let expected = jiff::Timestamp::from_millisecond(ms as i64).expect("in range");
            prop_assert_eq!(text(ms), format!("{expected:.3}"));
        }
    }
}
