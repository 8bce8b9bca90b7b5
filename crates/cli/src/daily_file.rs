//! A log file whose name carries the day: a new day begins a new file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing_subscriber::fmt::MakeWriter;

/// Writes lines into `server-2026-01-31.log` for `server.log`; days change at midnight, UTC.
#[derive(Clone)]
pub struct DailyFile {
    path: Arc<Path>,
    current: Arc<Mutex<Current>>,
}

struct Current {
    day: u64,
    file: File,
}

impl DailyFile {
    /// Opens today's file, and so finds out whether that can be done.
    pub fn open(path: &Path) -> io::Result<Self> {
        let day = today();
        let file = open(&dated(path, day))?;
        Ok(Self { path: path.into(), current: Arc::new(Mutex::new(Current { day, file })) })
    }
}

impl<'a> MakeWriter<'a> for DailyFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for DailyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let day = today();
        if day != current.day {
            // Where the new file cannot be had, the old one is better than nothing, and tomorrow is another day.
            current.day = day;
            if let Ok(file) = open(&dated(&self.path, day)) {
                current.file = file;
            }
        }
        current.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).file.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        // What is wrong with the folder shows when the file is opened.
        let _ = fs::create_dir_all(folder);
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// Days since 1970.
fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() / 86_400)
}

fn dated(path: &Path, day: u64) -> PathBuf {
    let (year, month, day) = civil(day);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}-{year}-{month:02}-{day:02}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{year}-{month:02}-{day:02}"),
    };
    path.with_file_name(name)
}

/// Year, month and day of a day since 1970. Years begin in March here, so that the leap day is the last one
/// (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(day: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let shifted = day + 719_468;
    let era = shifted / DAYS_OF_400_YEARS;
    let day_of_era = shifted % DAYS_OF_400_YEARS;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        for (day, date) in [
            (0, (1970, 1, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_484, (2026, 1, 31)),
            (20_818, (2026, 12, 31)),
        ] {
            assert_eq!(civil(day), date, "{day}");
        }
    }

    #[test]
    fn a_log_file_carries_its_day() {
        assert_eq!(dated(Path::new("logs/server.log"), 20_484), Path::new("logs/server-2026-01-31.log"));
        assert_eq!(dated(Path::new("server"), 20_484), Path::new("server-2026-01-31"));
    }

    #[test]
    fn a_new_day_begins_a_new_file() {
        let folder = std::env::temp_dir().join(format!("firebrick-log-{}", std::process::id()));
        let mut log = DailyFile::open(&folder.join("x.log")).expect("a file in a temporary folder");
        log.write_all(b"today\n").expect("it can be written");
        let text = |day| fs::read_to_string(dated(&folder.join("x.log"), day)).expect("the file is there");
        assert_eq!(text(today()), "today\n");
        // As if the file were yesterday's.
        let yesterday = today() - 1;
        let mut current = log.current.lock().expect("not poisoned");
        *current = Current { day: yesterday, file: open(&dated(&log.path, yesterday)).expect("a file") };
        drop(current);
        log.write_all(b"more\n").expect("it can be written");
        assert_eq!((text(yesterday).as_str(), text(today()).as_str()), ("", "today\nmore\n"));
        fs::remove_dir_all(&folder).expect("it is ours");
    }
}
