//! The process itself in numbers, under the names that Prometheus' client libraries use. Linux only: elsewhere the
//! families are left out rather than invented.

use std::fs;

/// What `/proc` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProcessMetrics {
    /// Memory in use.
    pub resident_bytes: u64,
    /// Address space.
    pub virtual_bytes: u64,
    /// Processor time used, in user and kernel mode.
    pub cpu_seconds: f64,
    /// Open files and sockets.
    pub open_fds: u64,
}

impl ProcessMetrics {
    /// Reads them; `None` where there is no `/proc`.
    pub fn read() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let open_fds = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        Some(Self {
            resident_bytes: kilobytes(&status, "VmRSS:")?,
            virtual_bytes: kilobytes(&status, "VmSize:")?,
            cpu_seconds: cpu_seconds(&stat)?,
            // Reading the folder opens one.
            open_fds: open_fds.saturating_sub(1),
        })
    }
}

fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

/// Fields 14 and 15 of `/proc/self/stat`, counted behind the command's name, which may hold blanks.
fn cpu_seconds(stat: &str) -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let [user, kernel] = [fields.next()?, fields.next()?].map(|field| field.parse::<f64>());
    Some((user.ok()? + kernel.ok()?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_is_read() {
        let status = "Name:\tx\nVmSize:\t   2048 kB\nVmRSS:\t     4 kB\n";
        assert_eq!((kilobytes(status, "VmSize:"), kilobytes(status, "VmRSS:")), (Some(2 << 20), Some(4096)));
        let stat = "1 (a b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("nonsense"), None);
    }
}
