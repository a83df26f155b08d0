//! The rows that show something of another table's records, when those change or go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Stop;
use super::mirror::Spec;
use super::names::Named;
use super::range::Range;
use super::reference::Reference;
use super::store::{Relabelling, Renamed, Step, Store};
use super::sweep::{Progress, Seen, Sweep};
use crate::client::Client;
use crate::client::page_size::PageSize;
use crate::client::table_api::{List, shrinking};
use crate::client::transport::Transport;
use crate::error::Error;
use crate::page::Layout;
use crate::query::{Query, Term};
use crate::value::{Show, SysId};

/// Records whose referrers are asked for in one call, so that its address stays well below an instance's limit; of lists,
/// whose condition is longer, fewer.
const REFERRED_AT_A_TIME: usize = 50;
const LISTED_AT_A_TIME: usize = 20;

/// The rows of one table that refer to another.
pub(super) struct Referrers<'m, T, S: Store> {
    pub(super) client: &'m Client<T>,
    pub(super) store: &'m S,
    pub(super) table: S::Table,
    pub(super) spec: &'m Spec,
    pub(super) references: &'m [Reference],
}

impl<T: Transport, S: Store> Referrers<'_, T, S> {
    /// Has the rows show what records are called now.
    pub(super) async fn show(&self, shown: &[(String, Show)], changed: &[&Named]) -> Result<(), Stop> {
        if changed.is_empty() {
            return Ok(());
        }
        let columns: Vec<Renamed> = self
            .references
            .iter()
            .filter_map(|reference| {
                let name = shown.iter().position(|shown| *shown == reference.shown)?;
                Some(Renamed { column: reference.column, by: reference.twin?, name })
            })
            .collect();
        if !columns.is_empty() {
            let records = changed.iter().map(|record| (record.id.clone(), record.names.clone())).collect();
            self.store.apply(self.table, Step::Relabelled(Relabelling { columns, records })).await?;
        }
        let ids: Vec<&SysId> = changed.iter().map(|record| &record.id).collect();
        self.reread(&ids, |reference| reference.twin.is_none()).await
    }

    /// Has the rows looked up that refer to records that were deleted, or did: by what they hold themselves, by the name
    /// they show, and by what the instance has of them.
    pub(super) async fn doubt(&self, gone: &[&(SysId, String)]) -> Result<(), Stop> {
        if gone.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = gone.iter().map(|(id, _)| id.as_str().to_owned()).collect();
        let names: Vec<String> =
            gone.iter().map(|(_, name)| name.clone()).filter(|n| !n.is_empty()).collect();
        let mut texts: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for reference in self.references.iter().filter(|reference| !reference.is_list) {
            match reference.twin {
                Some(by) => drop(texts.insert(by, ids.clone())),
                None if self.spec.layout.columns()[reference.column].show == Show::Label
                    && !names.is_empty() =>
                {
                    texts.insert(reference.column, names.clone());
                }
                None => {}
            }
        }
        if !texts.is_empty() {
            self.store.apply(self.table, Step::DoubtedWhere(texts.into_iter().collect())).await?;
        }
        self.reread(&gone.iter().map(|(id, _)| id).collect::<Vec<_>>(), |reference| reference.twin.is_none())
            .await
    }

    /// Reads those columns of the rows that refer to these records.
    async fn reread(&self, ids: &[&SysId], which: impl Fn(&Reference) -> bool) -> Result<(), Stop> {
        let mut paths: BTreeMap<(&str, bool), BTreeSet<usize>> = BTreeMap::new();
        for reference in self.references.iter().filter(|reference| which(reference)) {
            paths.entry((&reference.path, reference.is_list)).or_default().insert(reference.column);
        }
        let ids: Vec<&SysId> = ids.iter().copied().filter(|id| id.is_plain()).collect();
        for ((path, is_list), columns) in paths {
            let columns: Vec<usize> = columns.into_iter().collect();
            let at_a_time = if is_list { LISTED_AT_A_TIME } else { REFERRED_AT_A_TIME };
            for some in ids.chunks(at_a_time) {
                let condition = match is_list {
                    true => some.iter().map(|id| Term::contains(path, id.as_str())).collect(),
                    false => Term::is_one_of(path, some.iter().map(|id| id.as_str())).map(|term| vec![term]),
                };
                let query = self.spec.query.clone().and_any(condition.map_err(Error::from)?);
                self.read_columns(&query, &columns).await?;
            }
        }
        Ok(())
    }

    async fn read_columns(&self, query: &Query, columns: &[usize]) -> Result<(), Stop> {
        let layout = columns.iter().map(|column| self.spec.layout.columns()[*column].clone());
        let layout = Arc::new(Layout::new(layout.collect()));
        let page_size = PageSize::new(self.spec.page_size);
        let mut sweep = Sweep::new(Range::default(), None);
        loop {
            let (query, offset) = sweep.page(query)?;
            let (page, limit) = shrinking(&page_size, |limit| {
                let (table, query, count) = (&self.spec.table, &query, sweep.wants_count(limit));
                self.client.list(List { table, query, layout: &layout, limit, offset, count })
            })
            .await?;
            let last = page.rows.ids().last().map(SysId::new);
            let seen = Seen { rows: page.rows.len(), last, total: page.total };
            let progress = sweep.advance(&seen, limit);
            if !page.rows.is_empty() {
                let (columns, rows) = (columns.to_vec(), page.rows);
                self.store.apply(self.table, Step::Reread { columns, rows }).await?;
            }
            if progress == Progress::Done {
                return Ok(());
            }
        }
    }
}
