//! Reading a whole table: ranges of `sys_id`s side by side, each with a position the store keeps.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::SystemTime;

use futures_util::future::try_join;
use futures_util::stream::{TryStreamExt, iter};

use super::compare::{Difference, Shown};
use super::mirror::Mirror;
use super::range::Range;
use super::recheck::recheck;
use super::store::{OpenRange, Position, Step, Store};
use super::sweep::{Progress, Seen, Sweep};
use super::{Stop, local_seconds};
use crate::client::table_api::shrinking;
use crate::client::transport::Transport;
use crate::page::Rows;
use crate::value::SysId;

/// A table of fewer records than this is read as one range.
const SPLIT_FROM: u64 = 4_000;
/// The ranges a larger table is read in.
const RANGES: usize = 16;

impl<T: Transport, S: Store> Mirror<T, S> {
    /// Begins a fill: looks how much there is, and cuts it into ranges.
    pub(super) async fn begin(&mut self, refill: bool) -> Result<(), Stop> {
        let at = SystemTime::now();
        let page = self.list(&self.spec.query, 1, 0, true).await?;
        let since = page.served_at.unwrap_or_else(|| local_seconds(at));
        let count = match page.total {
            Some(total) if total < SPLIT_FROM => 1,
            _ => RANGES,
        };
        let ranges = Range::partition(count);
        let open = ranges.iter().cloned().zip(0..);
        let open = open.map(|(range, number)| OpenRange { number, range, after: None }).collect();
        self.apply(Step::Begin { ranges, since, refill, total: page.total, at }).await?;
        self.last_poll = Some(at);
        self.position = Position::Filling { refill, open, since };
        Ok(())
    }

    /// Fills the open ranges, several at a time. A range's position advances in the store as its pages are
    /// kept, so that whoever comes after a failure goes on from there.
    pub(super) async fn fill(&mut self, refill: bool, open: Vec<OpenRange>) -> Result<(), Stop> {
        let left = Mutex::new(open.clone());
        let this = &*self;
        let filled = iter(open.into_iter().map(Ok::<_, Stop>))
            .try_for_each_concurrent(self.spec.parallel.max(1), |range| this.fill_range(refill, range, &left))
            .await;
        if let Position::Filling { open, .. } = &mut self.position {
            *open = left.into_inner().expect("no panic while it is held");
        }
        filled
    }

    /// Fills one range. The next page is fetched while the one before it is being stored.
    async fn fill_range(
        &self,
        refill: bool,
        open: OpenRange,
        left: &Mutex<Vec<OpenRange>>,
    ) -> Result<(), Stop> {
        // A refill has to know every record the instance showed, so it cannot go on from the middle.
        let after = if refill { None } else { open.after.clone() };
        let mut sweep = Sweep::new(open.range.clone(), after);
        let mut shown = refill.then(HashMap::new);
        let mut next = Some(self.sweep_page(&mut sweep).await?);
        while let Some((rows, progress)) = next.take() {
            if let Some(shown) = &mut shown {
                shown.extend((0..rows.len()).map(|row| (SysId::new(rows.id(row)), rows.version(row))));
            }
            let after = sweep.after().cloned();
            let keep = async {
                if !rows.is_empty() {
                    let step = Step::Filled { number: open.number, rows, after: after.clone() };
                    self.apply(step).await?;
                    let mut left = left.lock().expect("no panic while it is held");
                    left.iter_mut().filter(|r| r.number == open.number).for_each(|r| r.after = after.clone());
                }
                Ok(())
            };
            next = match progress {
                Progress::Done => {
                    keep.await?;
                    None
                }
                Progress::More => {
                    let mut ahead = sweep.clone();
                    let (_, page) = try_join(keep, self.sweep_page(&mut ahead)).await?;
                    sweep = ahead;
                    Some(page)
                }
            };
        }
        if let Some(records) = shown {
            let shown = Shown { range: open.range, records };
            let differences = self.store.compare(self.table, vec![shown]).await?;
            let differing = differences.into_iter().flat_map(Difference::to_recheck).collect();
            recheck(&self.client, &*self.store, self.table, &self.spec, differing).await?;
        }
        self.apply(Step::RangeDone { number: open.number }).await?;
        let mut left = left.lock().expect("no panic while it is held");
        left.retain(|r| r.number != open.number);
        Ok(())
    }

    /// One page of a sweep, asked for in smaller pieces as long as the instance cuts it short.
    async fn sweep_page(&self, sweep: &mut Sweep) -> Result<(Rows, Progress), Stop> {
        let (query, offset) = sweep.page(&self.spec.query)?;
        let (page, limit) = shrinking(self.spec.page_size, |limit| {
            self.list(&query, limit, offset, sweep.wants_count(limit))
        })
        .await?;
        let last = page.rows.ids().last().map(SysId::new);
        let progress = sweep.advance(&Seen { rows: page.rows.len(), last, total: page.total }, limit);
        Ok((page.rows, progress))
    }
}
