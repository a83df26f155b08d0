//! The Aggregate API: how many records match a query.

use std::sync::Arc;

use serde::Deserialize;

use super::Client;
use super::table_api::{List, unstructured};
use super::transport::{Response, Transport};
use crate::error::{Error, Result};
use crate::page::Layout;
use crate::query::Query;
use crate::value::TableName;

/// The ungrouped answer: an object, the numbers as text.
#[derive(Deserialize)]
struct Answer {
    result: Computed,
}

#[derive(Deserialize)]
struct Computed {
    stats: Stats,
}

#[derive(Deserialize)]
struct Stats {
    count: String,
}

impl<T: Transport> Client<T> {
    /// How many records match, those that access control hides row by row included. Where the Aggregate API is
    /// refused or absent, the Table API is asked.
    pub async fn count(&self, table: &TableName, query: &Query) -> Result<u64> {
        let query_text = query.to_string();
        let mut pairs = vec![("sysparm_count", "true")];
        if !query_text.is_empty() {
            pairs.push(("sysparm_query", &query_text));
        }
        let url = self.url(&format!("/api/now/stats/{table}"), &pairs)?;
        match self.read(url, counted).await {
            Err(
                Error::Refused { .. }
                | Error::NoRecord(_)
                | Error::Rejected { status: 400 | 404 | 405 | 501, .. },
            ) => self.count_in_list(table, query).await,
            counted => counted,
        }
    }

    async fn count_in_list(&self, table: &TableName, query: &Query) -> Result<u64> {
        let layout = Arc::new(Layout::of_text(&[]));
        let page =
            self.list(List { table, query, layout: &layout, limit: 1, offset: 0, count: true }).await?;
        page.total
            .ok_or_else(|| Error::Unreadable("the answer does not say how many records match".to_owned()))
    }
}

fn counted(response: &Response) -> Result<u64> {
    let answer: Option<Answer> = serde_json::from_slice(&response.body).ok();
    let count = answer.and_then(|answer| answer.result.stats.count.trim().parse().ok());
    count.ok_or_else(|| unstructured(&response.body))
}
