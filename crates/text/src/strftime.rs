//! Dates for templates: C's `strftime` in the proleptic Gregorian calendar, with the moment given by the caller.

use minijinja::{Error, ErrorKind};

/// `strftime` for a moment in seconds since 1970; an unknown directive is an error that names it.
pub(crate) fn strftime(unix_time_s: i64, format: &str) -> Result<String, Error> {
    let moment = Moment::from_unix(unix_time_s);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(character) = chars.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let text = directive.and_then(|directive| moment.directive(directive)).ok_or_else(|| {
            let name = directive.map_or(String::new(), String::from);
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know the directive %{name}"))
        })?;
        match text.trim_start_matches(['0', ' ']) {
            "" if unpadded => out.push('0'),
            trimmed if unpadded => out.push_str(trimmed),
            _ => out.push_str(&text),
        }
    }
    Ok(out)
}

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
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in the proleptic Gregorian calendar.
struct Moment {
    year: i64,
    month: usize,
    day: i64,
    day_of_year: i64,
    weekday: usize,
    second_of_day: i64,
}

impl Moment {
    fn from_unix(unix_time_s: i64) -> Self {
        let days = unix_time_s.div_euclid(86_400);
        let (year, month, day) = civil_from_days(days);
        let (january, _) = (days_before_year(year), ());
        Self {
            year,
            month,
            day,
            day_of_year: days - january + 1,
            weekday: usize::try_from((days + 4).rem_euclid(7)).expect("0 to 6"),
            second_of_day: unix_time_s.rem_euclid(86_400),
        }
    }

    fn directive(&self, directive: char) -> Option<String> {
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let (month, weekday) = (MONTHS[self.month - 1], WEEKDAYS[self.weekday]);
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'w' => self.weekday.to_string(),
            'u' => if self.weekday == 0 { 7 } else { self.weekday }.to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'D' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year.rem_euclid(100)),
            'R' => format!("{hour:02}:{minute:02}"),
            'Z' | 'z' => String::new(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

/// Days from 1970-01-01 to January 1st of `year`.
fn days_before_year(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) - 719_162
}

fn civil_from_days(days: i64) -> (i64, usize, i64) {
    // A year has 365.2425 days on average: the estimate is at most one year off.
    let mut year = 1970 + (days as f64 / 365.2425).floor() as i64;
    while days_before_year(year) > days {
        year -= 1;
    }
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut day = days - days_before_year(year);
    for (index, length) in lengths.into_iter().enumerate() {
        if day < length {
            return (year, index + 1, day + 1);
        }
        day -= length;
    }
    unreachable!("the day lies inside the year, and the months fill it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let show = |time| strftime(time, "%a %d %b %Y %H:%M:%S %j %-d %B %A %p %I").expect("known directives");
        assert_eq!(show(0), "Thu 01 Jan 1970 00:00:00 001 1 January Thursday AM 12");
        assert_eq!(show(1_709_210_096), "Thu 29 Feb 2024 12:34:56 060 29 February Thursday PM 12");
        assert_eq!(show(-1), "Wed 31 Dec 1969 23:59:59 365 31 December Wednesday PM 11");
        assert!(strftime(0, "%Q").is_err());
    }
}
