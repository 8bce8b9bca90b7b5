//! The order in which requests are served.
//!
//! One key decides everything: the smallest waits at the front of the queue, the largest is preempted first. It never
//! changes during a sequence's life, so a preempted sequence returns to its own place.

use crate::{SchedulingPolicy, SequenceId};

/// Place of a sequence among all others; smaller is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServiceOrder {
    /// Lower first; the same for all under [`SchedulingPolicy::Fcfs`].
    priority: i32,
    /// Requests are numbered by arrival.
    sequence: SequenceId,
}

impl ServiceOrder {
    pub(crate) fn new(policy: SchedulingPolicy, priority: i32, sequence: SequenceId) -> Self {
        let priority = match policy {
            SchedulingPolicy::Fcfs => 0,
            SchedulingPolicy::Priority => priority,
        };
        Self { priority, sequence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestId;

    fn order(policy: SchedulingPolicy, priority: i32, request: u64, index: u32) -> ServiceOrder {
        ServiceOrder::new(policy, priority, SequenceId { request: RequestId(request), index })
    }

    #[test]
    fn fcfs_serves_by_arrival_whatever_the_priority() {
        let policy = SchedulingPolicy::Fcfs;
        assert!(order(policy, 9, 1, 0) < order(policy, 0, 2, 0));
        assert!(order(policy, 0, 1, 0) < order(policy, 0, 1, 1));
    }

    #[test]
    fn priority_serves_lower_first_then_by_arrival() {
        let policy = SchedulingPolicy::Priority;
        assert!(order(policy, -1, 5, 0) < order(policy, 0, 2, 0));
        assert!(order(policy, 0, 2, 0) < order(policy, 0, 5, 0));
    }
}
