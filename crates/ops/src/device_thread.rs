//! The thread on which Burn's runtime talks to a GPU: how often it wakes while it has nothing to do.
//!
//! It wakes every 150 µs to look whether its process still needs it, which takes 2 % of a core of an idle server. Work
//! wakes it at once, and so nothing but its end depends on that. Linux wakes a thread later than asked, by as much as the
//! thread allows: here that is much more than usual. Elsewhere the thread keeps its habit.

use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use burn::tensor::Device;

use crate::device::with_device_alone;

/// How late the thread may look, at most: twenty times a second costs nothing that can be measured.
const SLACK: Duration = Duration::from_millis(50);

/// Lets the thread of a device that was just opened sleep while it has no work.
pub(crate) fn let_sleep(device: &Device) {
    let outcome = with_device_alone(device, || allow_slack(SLACK));
    if let Some(Err(error)) = outcome {
        tracing::debug!(%error, "the device's thread looks for work every 150 µs");
    }
}

/// Lets the kernel wake this thread up to `slack` later than it asks, unless something else wakes it.
fn allow_slack(slack: Duration) -> io::Result<()> {
    // A link to `<process>/task/<thread>`. The slack is found under the thread's own number, and only a thread itself may
    // change it without privileges.
    let this = fs::read_link("/proc/thread-self")?;
    let number = this.file_name().ok_or(io::ErrorKind::NotFound)?;
    fs::write(Path::new("/proc").join(number).join("timerslack_ns"), slack.as_nanos().to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// How often a thread wakes in a quarter of a second that asks for it every 150 µs.
    fn wakes(slack: Option<Duration>) -> u32 {
        let count = move || {
            if let Some(slack) = slack {
                allow_slack(slack).expect("a thread of Linux sets its own slack");
            }
            let started = Instant::now();
            let mut wakes = 0;
            while started.elapsed() < Duration::from_millis(250) {
                std::thread::park_timeout(Duration::from_micros(150));
                wakes += 1;
            }
            wakes
        };
        std::thread::spawn(count).join().expect("the thread does not panic")
    }

    #[test]
    fn a_thread_with_slack_wakes_seldom_and_the_others_as_before() {
        let (usual, seldom) = (wakes(None), wakes(Some(SLACK)));
        assert!(seldom * 2 < usual, "{seldom} wakes with slack, {usual} without");
        assert!(wakes(None) > seldom, "the slack is that of one thread");
    }

    #[test]
    fn work_wakes_a_thread_with_slack_at_once() {
        let (sender, receiver) = std::sync::mpsc::channel::<Instant>();
        let waits = move || {
            allow_slack(Duration::from_secs(60)).expect("a thread of Linux sets its own slack");
            receiver.recv_timeout(Duration::from_secs(30)).expect("sent below").elapsed()
        };
        let thread = std::thread::spawn(waits);
        std::thread::sleep(Duration::from_millis(20));
        sender.send(Instant::now()).expect("the thread waits");
        let late = thread.join().expect("the thread does not panic");
        assert!(late < Duration::from_secs(5), "woken after {late:?}");
    }
}
