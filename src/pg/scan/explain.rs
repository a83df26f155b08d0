//! The inner plan of a foreign scan in EXPLAIN's output. EXPLAIN keeps what it knows of the plan it prints in its state,
//! and prints a plan of its own as the root of a tree only.

use std::ptr::{null, null_mut};

use pgrx::pg_sys;

use crate::pg::catalog::{c_string, text};

/// Prints the plan of a query as the child of the node that is being printed.
///
/// # Safety
/// Called as `ExplainForeignScan`, with its arguments and a query whose execution was started.
pub unsafe fn print_child(
    node: *mut pg_sys::ForeignScanState,
    es: *mut pg_sys::ExplainState,
    query: *mut pg_sys::QueryDesc,
) {
    // SAFETY: by contract. The copy shares the output buffer, or has one of its own; settings were printed once already.
    unsafe {
        let mut inner = std::ptr::read(es);
        inner.settings = false;
        // A node that has children of another kind gets its list of them from EXPLAIN.
        let has_others = !(*node).ss.ps.initPlan.is_null() || !(*node).ss.ps.subPlan.is_null();
        let marks = marks((*es).format).filter(|_| !has_others);
        let Some(Marks { begin, end, separator }) = marks else {
            pg_sys::ExplainPrintPlan(&mut inner, query);
            return;
        };
        pg_sys::ExplainOpenGroup(c"Plans".as_ptr(), c"Plans".as_ptr(), false, es);
        pg_sys::ExplainOpenGroup(c"Plan".as_ptr(), null(), true, es);
        pg_sys::ExplainPropertyText(c"Parent Relationship".as_ptr(), c"Outer".as_ptr(), es);
        inner.str_ = pg_sys::makeStringInfo();
        // The root is printed as a group of its own, one step further in.
        inner.indent = (*es).indent - 1;
        inner.grouping_stack = pg_sys::lappend_int(null_mut(), 0);
        pg_sys::ExplainPrintPlan(&mut inner, query);
        let printed = text((*inner.str_).data).unwrap_or_default();
        let properties = printed.split_once(begin).map_or("", |(_, rest)| rest);
        let properties =
            if end.is_empty() { properties } else { properties.rsplit_once(end).unwrap_or_default().0 };
        let properties = properties.trim_end_matches(' ');
        let properties = c_string(&format!("{separator}{properties}"));
        pg_sys::appendStringInfoString((*es).str_, properties.as_ptr());
        pg_sys::ExplainCloseGroup(c"Plan".as_ptr(), null(), true, es);
        pg_sys::ExplainCloseGroup(c"Plans".as_ptr(), c"Plans".as_ptr(), false, es);
    }
}

/// What stands around the properties of a tree's root, and between those of a node.
struct Marks {
    begin: &'static str,
    end: &'static str,
    separator: &'static str,
}

fn marks(format: pg_sys::ExplainFormat::Type) -> Option<Marks> {
    Some(match format {
        pg_sys::ExplainFormat::EXPLAIN_FORMAT_JSON => Marks { begin: "{", end: "\n", separator: "," },
        pg_sys::ExplainFormat::EXPLAIN_FORMAT_XML => {
            Marks { begin: "<Plan>\n", end: "</Plan>", separator: "" }
        }
        pg_sys::ExplainFormat::EXPLAIN_FORMAT_YAML => Marks { begin: "Plan: ", end: "", separator: "" },
        _ => return None,
    })
}
