//! How often something is polled: at its own interval, or less often while the instance tells of changes by itself.

use std::future::pending;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::LONGEST_REFUSAL;

/// The interval of something that is polled.
#[derive(Clone, Debug)]
pub struct Pace {
    own: Duration,
    slowed: Option<watch::Receiver<Option<Slow>>>,
}

/// Slows down what is polled of a server, as long as polling is only the backstop. When it is dropped everything is back
/// at its own pace.
#[derive(Debug)]
pub struct Brake(watch::Sender<Option<Slow>>);

/// A pace that is the same for all.
#[derive(Clone, Copy, Debug)]
struct Slow {
    least: Duration,
    /// What it was when those who wait were last told.
    told: Duration,
    /// One of the moments at which all tables are polled together.
    meeting: Instant,
}

/// A pause between two pieces of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Nothing ends it earlier: whoever waits does not hurry what has just failed.
    pub least: Duration,
    /// Its end, if nobody asks for anything before.
    pub most: Duration,
}

impl Rest {
    /// After a failure: nobody cuts the pause short, unless it is a long one.
    pub(super) fn after_failure(pause: Duration, interval: Duration) -> Self {
        Self { least: pause.min(LONGEST_REFUSAL), most: pause.max(interval) }
    }

    /// Rests until it is over, somebody nudges, also one who did during the first part, or the pace has changed. Gives
    /// back whether somebody has nudged.
    pub async fn take(self, nudge: &Notify, pace: &mut Pace) -> bool {
        if !self.least.is_zero() {
            sleep(self.least).await;
        }
        let woken = async {
            tokio::select! {
                () = nudge.notified() => true,
                () = pace.changed() => false,
            }
        };
        timeout(self.most.saturating_sub(self.least), woken).await == Ok(true)
    }
}

impl Default for Brake {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Brake {
    /// The pace of something whose own interval is this.
    pub fn pace(&self, own: Duration) -> Pace {
        Pace { own, slowed: Some(self.0.subscribe()) }
    }

    /// Has everything polled no more often than this, or at its own pace. Whoever waits is woken if that makes much of a
    /// difference; else all meet as they would have, and go on at the new pace from then on.
    pub fn set(&self, least: Option<Duration>) {
        self.0.send_if_modified(|slow| match (slow, least) {
            (Some(slow), Some(least)) if is_alike(slow.told, least) => {
                slow.least = least;
                false
            }
            (None, None) => false,
            (slow, least) => {
                *slow = least.map(|least| Slow { least, told: least, meeting: Instant::now() });
                true
            }
        });
    }
}

/// Whether one is less than twice the other.
fn is_alike(one: Duration, other: Duration) -> bool {
    one == other || one.max(other) < one.min(other).saturating_mul(2)
}

impl From<Duration> for Pace {
    /// Nothing slows it down.
    fn from(own: Duration) -> Self {
        Self { own, slowed: None }
    }
}

impl Pace {
    /// The interval at the moment.
    pub fn now(&self) -> Duration {
        self.slow().map_or(self.own, |slow| slow.least.max(self.own))
    }

    /// Whether it is slowed down: then nobody waits for what a poll brings.
    pub fn is_slowed(&self) -> bool {
        self.slow().is_some()
    }

    /// While it is slowed down, how long it is until the next moment at which this is done together with everything else
    /// that is slowed down: calls that are made at the same time can go in one.
    pub fn meeting_in(&self) -> Option<Duration> {
        let Slow { meeting, .. } = self.slow()?;
        let interval = self.now().as_nanos().max(1);
        let into = Instant::now().saturating_duration_since(meeting).as_nanos() % interval;
        Some(Duration::from_nanos(u64::try_from(interval - into).unwrap_or(u64::MAX)))
    }

    fn slow(&self) -> Option<Slow> {
        self.slowed.as_ref().and_then(|slowed| *slowed.borrow())
    }

    /// The interval if nothing slows it down.
    pub fn own(&self) -> Duration {
        self.own
    }

    /// As this one, of something that is done less often.
    pub fn times(&self, factor: u32) -> Self {
        Self { own: self.own.saturating_mul(factor), slowed: self.slowed.clone() }
    }

    /// Waits until the pace has changed.
    pub async fn changed(&mut self) {
        if let Some(slowed) = &mut self.slowed
            && slowed.changed().await.is_ok()
        {
            return;
        }
        // It stays as it is.
        self.slowed = None;
        pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_brake_slows_what_is_quicker_and_lets_go() {
        let brake = Brake::default();
        let (mut quick, slow) = (brake.pace(Duration::from_secs(1)), brake.pace(Duration::from_secs(100)));
        assert_eq!((quick.now(), slow.now()), (Duration::from_secs(1), Duration::from_secs(100)));
        brake.set(Some(Duration::from_secs(10)));
        assert_eq!((quick.now(), slow.now()), (Duration::from_secs(10), Duration::from_secs(100)));
        quick.changed().await;
        brake.set(None);
        quick.changed().await;
        assert_eq!(quick.now(), Duration::from_secs(1));
        assert_eq!(Pace::from(Duration::from_secs(3)).now(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_slowed_down_meets_however_long_each_takes() {
        let brake = Brake::default();
        let (quick, slow) = (brake.pace(Duration::from_secs(1)), brake.pace(Duration::from_secs(30)));
        assert!(quick.meeting_in().is_none() && !quick.is_slowed());
        brake.set(Some(Duration::from_secs(10)));
        sleep(Duration::from_millis(3_500)).await;
        // What is said once more changes nothing.
        brake.set(Some(Duration::from_secs(10)));
        assert_eq!(quick.meeting_in(), Some(Duration::from_millis(6_500)));
        assert_eq!(slow.meeting_in(), Some(Duration::from_millis(26_500)));
        sleep(Duration::from_millis(6_500)).await;
        assert_eq!(quick.meeting_in(), Some(Duration::from_secs(10)), "the next one, not this one again");
        brake.set(None);
        assert!(quick.meeting_in().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_that_changes_little_wakes_nobody_and_keeps_the_meeting() {
        let brake = Brake::default();
        let mut pace = brake.pace(Duration::from_secs(1));
        let is_woken = async |pace: &mut Pace| timeout(Duration::ZERO, pace.changed()).await.is_ok();
        brake.set(Some(Duration::from_secs(10)));
        assert!(is_woken(&mut pace).await);
        sleep(Duration::from_secs(3)).await;
        brake.set(Some(Duration::from_secs(12)));
        assert!(!is_woken(&mut pace).await);
        assert_eq!((pace.now(), pace.meeting_in()), (Duration::from_secs(12), Some(Duration::from_secs(9))));
        // Many small steps are a large one.
        brake.set(Some(Duration::from_secs(18)));
        assert!(!is_woken(&mut pace).await);
        brake.set(Some(Duration::from_secs(20)));
        assert!(is_woken(&mut pace).await);
        assert_eq!(pace.meeting_in(), Some(Duration::from_secs(20)));
        brake.set(Some(Duration::from_secs(10)));
        assert!(is_woken(&mut pace).await);
        brake.set(None);
        assert!(is_woken(&mut pace).await);
        assert!(!pace.is_slowed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_nudge_ends_a_rest_but_not_its_first_part() {
        let (nudge, mut pace) = (Notify::new(), Pace::from(Duration::from_secs(1)));
        for (least, nudged, took) in [(0, true, 0), (3, true, 3), (3, false, 10)] {
            let rest = Rest { least: Duration::from_secs(least), most: Duration::from_secs(10) };
            if nudged {
                nudge.notify_one();
            }
            let began = Instant::now();
            assert_eq!(rest.take(&nudge, &mut pace).await, nudged);
            assert_eq!(began.elapsed().as_secs(), took);
        }
    }
}
