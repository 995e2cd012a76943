//! Dates as chat templates ask for them: the part of Python's `strftime` that they use.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// The present time in this format, in UTC.
///
/// # Errors
/// The letter after a `%` that is not known here.
pub(crate) fn now(format: &str) -> Result<String, String> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    write(seconds, format)
}

/// A time in seconds since 1970 in this format.
fn write(seconds: u64, format: &str) -> Result<String, String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[((days + 3) % 7) as usize]); // 1970 began on a Thursday
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        let written = match letters.next() {
            Some('Y') => write!(text, "{year}"),
            Some('y') => write!(text, "{:02}", year % 100),
            Some('m') => write!(text, "{month:02}"),
            Some('B') => write!(text, "{month_name}"),
            Some('b') => write!(text, "{}", &month_name[..3]),
            Some('d') => write!(text, "{day:02}"),
            Some('e') => write!(text, "{day:2}"),
            Some('A') => write!(text, "{day_name}"),
            Some('a') => write!(text, "{}", &day_name[..3]),
            Some('H') => write!(text, "{hour:02}"),
            Some('I') => write!(text, "{:02}", (hour + 11) % 12 + 1),
            Some('p') => write!(text, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(text, "{minute:02}"),
            Some('S') => write!(text, "{second:02}"),
            Some('%') => write!(text, "%"),
            other => return Err(other.map_or("%".into(), |letter| format!("%{letter}"))),
        };
        written.map_err(|error| error.to_string())?;
    }
    Ok(text)
}

/// Year, month and day, both from 1, of a day since 1970.
///
/// Source: Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`, for days from 1970 on.
fn date(days: u64) -> (u64, usize, u64) {
    let days = days + 719_468; // since 1 March of year 0: a leap day ends its year
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference: Python 3, `datetime.fromtimestamp(seconds, UTC).strftime(format)`.
    #[test]
    fn times_are_written_as_python_writes_them() {
        let format = "%Y-%m-%d %e %b %B %y %a %A %H:%M:%S %I %p 100%%";
        for (seconds, expected) in [
            (0, "1970-01-01  1 Jan January 70 Thu Thursday 00:00:00 12 AM 100%"),
            (951_827_696, "2000-02-29 29 Feb February 00 Tue Tuesday 12:34:56 12 PM 100%"),
            (1_735_689_599, "2024-12-31 31 Dec December 24 Tue Tuesday 23:59:59 11 PM 100%"),
            (4_107_542_400, "2100-03-01  1 Mar March 00 Mon Monday 00:00:00 12 AM 100%"),
        ] {
            assert_eq!(write(seconds, format).unwrap(), expected);
        }
        assert_eq!(write(0, "%Q"), Err("%Q".into()));
        assert_eq!(write(0, "%"), Err("%".into()));
        assert_eq!(now("%Y").unwrap().len(), 4);
    }
}
