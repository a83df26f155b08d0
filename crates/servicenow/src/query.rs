//! Encoded queries: ServiceNow's filter language, as a syntax tree.
//!
//! A query is a list of *alternatives* joined by `^NQ`; an alternative is a list of *clauses* joined by `^`;
//! a clause is a list of terms joined by `^OR`. Precedence is therefore OR, then AND, then NQ.
//! Terms of our own are built from checked parts; terms a user wrote are kept verbatim, but split, so that a
//! condition added to them applies to every alternative and the fields they name can be checked against the
//! dictionary (ServiceNow silently drops a condition on a field it does not know).

use std::fmt;

use crate::value::{SysId, is_field_path};

/// Operators a term may use, longest first, so that the first match in a term's text is the right one.
/// Source: "Operators available for filters and queries" of the vendor's documentation.
const OPERATORS: &[&str] = &[
    "IN_HIERARCHY_DYNAMIC",
    "GT_OR_EQUALS_FIELD",
    "LT_OR_EQUALS_FIELD",
    "DOES NOT CONTAIN",
    "IN_HIERARCHY",
    "EMPTYSTRING",
    "STARTSWITH",
    "ISNOTEMPTY",
    "INSTANCEOF",
    "VALCHANGES",
    "CHANGESFROM",
    "RELATIVEGE",
    "RELATIVEGT",
    "RELATIVELE",
    "RELATIVELT",
    "RELATIVEEE",
    "CHANGESTO",
    "CONTAINS",
    "NOT LIKE",
    "NOT IN",
    "ENDSWITH",
    "GT_FIELD",
    "LT_FIELD",
    "DATEPART",
    "MORETHAN",
    "LESSTHAN",
    "ANYTHING",
    "NSAMEAS",
    "ISEMPTY",
    "BETWEEN",
    "DYNAMIC",
    "SAMEAS",
    "NOTON",
    "LIKE",
    "ON",
    "IN",
    "!=",
    "<=",
    ">=",
    "!*",
    "=",
    "<",
    ">",
    "*",
    "%",
];

/// What a part of a query may begin with that is not, or not only, a condition.
const KEYWORDS: &[&str] =
    &["NQ", "OR", "GROUPBY", "TRENDBY", "RLQUERY", "ENDRLQUERY", "JOIN", "SUBQUERY", "ENDSUBQUERY"];

/// A comparison this library builds itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `=`
    Eq,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
}

impl Op {
    fn text(self) -> &'static str {
        match self {
            Op::Eq => "=",
            Op::Lt => "<",
            Op::Le => "<=",
            Op::Gt => ">",
            Op::Ge => ">=",
        }
    }
}

/// One condition, such as `state=2`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    field: String,
    rest: String,
}

/// Why an encoded query cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A condition starts with no field name that is followed by an operator.
    #[error("condition \"{0}\" does not consist of a field, an operator and a value")]
    NotACondition(String),
    /// A value holds a character that has a meaning of its own and cannot be escaped.
    #[error("value cannot be expressed in an encoded query")]
    Inexpressible,
    /// A part whose meaning depends on its place, which adding a condition would change.
    #[error("\"{0}\" is not supported here")]
    Unsupported(String),
}

/// Whether the instance may run a value instead of comparing with it.
fn is_code(value: &str) -> bool {
    value.to_ascii_lowercase().contains("javascript:")
}

impl Term {
    /// A comparison of a field with a value. The value is refused if it cannot be expressed: encoded queries
    /// have no escape that every source agrees on, and a value with `javascript:` may be code.
    pub fn new(field: &str, op: Op, value: &str) -> Result<Self, QueryError> {
        if !is_field_path(field) {
            return Err(QueryError::NotACondition(field.to_owned()));
        }
        if value.contains(['^', '\0', '\n', '\r']) || is_code(value) {
            return Err(QueryError::Inexpressible);
        }
        Ok(Self { field: field.to_owned(), rest: format!("{}{value}", op.text()) })
    }

    /// `field` is one of `values`.
    pub fn is_one_of<'a>(field: &str, values: impl IntoIterator<Item = &'a str>) -> Result<Self, QueryError> {
        let mut list = String::from("IN");
        for (i, value) in values.into_iter().enumerate() {
            if value.contains(['^', ',', '@', '\0', '\n', '\r']) || is_code(value) {
                return Err(QueryError::Inexpressible);
            }
            if i > 0 {
                list.push(',');
            }
            list.push_str(value);
        }
        Ok(Self { field: field.to_owned(), rest: list })
    }

    /// `field` has a value in it: one of a list of identifiers, for example.
    pub fn contains(field: &str, value: &str) -> Result<Self, QueryError> {
        let Self { field, rest } = Self::new(field, Op::Eq, value)?;
        Ok(Self { field, rest: format!("LIKE{}", &rest[Op::Eq.text().len()..]) })
    }

    /// `field` has no value.
    pub fn is_empty(field: &str) -> Self {
        Self { field: field.to_owned(), rest: "ISEMPTY".to_owned() }
    }

    /// `field` has a value.
    pub fn is_not_empty(field: &str) -> Self {
        Self { field: field.to_owned(), rest: "ISNOTEMPTY".to_owned() }
    }

    /// Takes a condition a user wrote apart into field and the rest. A field whose name begins with a keyword is
    /// refused: where the condition stands first it would be read as something else.
    fn parse(text: &str) -> Result<Self, QueryError> {
        let not_a_condition = || QueryError::NotACondition(text.to_owned());
        if KEYWORDS.iter().any(|keyword| text.starts_with(keyword)) {
            return Err(not_a_condition());
        }
        let path = |end: &usize| is_field_path(&text[..*end]);
        // A field name is lower case; operators that are words are upper case, so the name ends where the
        // first operator begins. Fields with capitals exist in imported tables: take the longest path then.
        let lower =
            text.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.')));
        let any = text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.')));
        for end in [lower, any].into_iter().flatten().filter(path) {
            let rest = &text[end..];
            if OPERATORS.iter().any(|op| rest.starts_with(op)) {
                return Ok(Self { field: text[..end].to_owned(), rest: rest.to_owned() });
            }
        }
        Err(not_a_condition())
    }

    /// The field the condition is on; a dot-walk is named whole.
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.field, self.rest)
    }
}

/// A sort key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Order {
    field: String,
    descending: bool,
}

/// An encoded query; the empty query matches every record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Query {
    /// Alternatives, each a conjunction of disjunctions. Empty, or no empty member.
    alternatives: Vec<Vec<Vec<Term>>>,
    order: Vec<Order>,
}

impl Query {
    /// The query that matches every record.
    pub fn all() -> Self {
        Self::default()
    }

    /// Reads an encoded query a user wrote. Sort keys and grouping are left out: a mirror reads in an order
    /// of its own. Related-list and join conditions are refused, because no condition can be added to them.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let mut query = Self::default();
        let mut clauses: Vec<Vec<Term>> = Vec::new();
        for part in split_conditions(text) {
            for special in ["RLQUERY", "ENDRLQUERY", "JOIN", "SUBQUERY", "ENDSUBQUERY"] {
                if part.starts_with(special) {
                    return Err(QueryError::Unsupported(special.to_owned()));
                }
            }
            if part.is_empty()
                || part == "EQ"
                || part.starts_with("ORDERBY")
                || part.starts_with("GROUPBY")
                || part.starts_with("TRENDBY")
            {
                continue;
            }
            if let Some(rest) = part.strip_prefix("NQ") {
                if !clauses.is_empty() {
                    query.alternatives.push(std::mem::take(&mut clauses));
                }
                if !rest.is_empty() {
                    clauses.push(vec![Term::parse(rest)?]);
                }
            } else if let Some(rest) = part.strip_prefix("OR") {
                let term = Term::parse(rest)?;
                match clauses.last_mut() {
                    Some(clause) => clause.push(term),
                    None => clauses.push(vec![term]),
                }
            } else {
                clauses.push(vec![Term::parse(&part)?]);
            }
        }
        if !clauses.is_empty() {
            query.alternatives.push(clauses);
        }
        Ok(query)
    }

    /// Adds a condition that must hold besides the query.
    #[must_use]
    pub fn and(self, term: Term) -> Self {
        self.and_any(vec![term])
    }

    /// Adds conditions of which one must hold besides the query.
    #[must_use]
    pub fn and_any(mut self, terms: Vec<Term>) -> Self {
        if self.alternatives.is_empty() {
            self.alternatives.push(Vec::new());
        }
        for alternative in &mut self.alternatives {
            alternative.push(terms.clone());
        }
        self
    }

    /// Adds an ascending sort key, after those already there.
    #[must_use]
    pub fn order_by(mut self, field: &str) -> Self {
        self.order.push(Order { field: field.to_owned(), descending: false });
        self
    }

    /// Adds a descending sort key, after those already there.
    #[must_use]
    pub fn order_by_descending(mut self, field: &str) -> Self {
        self.order.push(Order { field: field.to_owned(), descending: true });
        self
    }

    /// Whether the query matches every record.
    pub fn is_all(&self) -> bool {
        self.alternatives.is_empty()
    }

    /// Every field the query's conditions name, dot-walks whole.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.alternatives.iter().flatten().flatten().map(Term::field)
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, alternative) in self.alternatives.iter().enumerate() {
            if i > 0 {
                f.write_str("^NQ")?;
            }
            for (j, clause) in alternative.iter().enumerate() {
                for (k, term) in clause.iter().enumerate() {
                    f.write_str(match (j, k) {
                        (0, 0) => "",
                        (_, 0) => "^",
                        _ => "^OR",
                    })?;
                    write!(f, "{term}")?;
                }
            }
        }
        for (i, order) in self.order.iter().enumerate() {
            if i > 0 || !self.alternatives.is_empty() {
                f.write_str("^")?;
            }
            write!(f, "ORDERBY{}{}", if order.descending { "DESC" } else { "" }, order.field)?;
        }
        Ok(())
    }
}

/// Splits at every `^` that is not doubled (a doubled one is a literal caret).
fn split_conditions(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.last_mut().expect("there is always one part");
        match c {
            '^' if chars.peek() == Some(&'^') && !last.is_empty() => {
                chars.next();
                last.push_str("^^");
            }
            '^' => parts.push(String::new()),
            c => last.push(c),
        }
    }
    parts
}

/// `sys_id` is one of `ids`, for as many of them as can stand in a query; the others are left out.
pub fn ids_term<'a>(ids: impl IntoIterator<Item = &'a SysId>) -> Term {
    let plain = ids.into_iter().filter(|id| id.is_plain()).map(SysId::as_str);
    Term::is_one_of("sys_id", plain).expect("plain identifiers can stand in a query")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round(text: &str) -> String {
        Query::parse(text).expect("parses").to_string()
    }

    #[test]
    fn a_field_called_like_a_keyword_is_refused_where_it_could_be_misread() {
        for text in ["^NQORDEai=1", "a=1^NQORb=2", "a=1^ORNQb=2", "a=1^ORORb=2", "^NQGROUPBYb=1"] {
            assert!(matches!(Query::parse(text), Err(QueryError::NotACondition(_))), "{text}");
        }
        assert_eq!(Query::parse("ORb=2").expect("a query").to_string(), "b=2");
    }

    #[test]
    fn a_condition_added_applies_to_every_alternative() {
        let query = Query::parse("active=true^state=1^ORstate=2^NQpriority=1^EQ").unwrap();
        let query = query.and(Term::new("sys_id", Op::Gt, "ab").unwrap()).order_by("sys_id");
        assert_eq!(
            query.to_string(),
            "active=true^state=1^ORstate=2^sys_id>ab^NQpriority=1^sys_id>ab^ORDERBYsys_id"
        );
    }

    #[test]
    fn one_of_several_conditions_applies_to_every_alternative() {
        let query = Query::parse("active=true^NQpriority=1").unwrap();
        let terms = vec![Term::new("n", Op::Lt, "5").unwrap(), Term::is_empty("n")];
        let expected = "active=true^n<5^ORnISEMPTY^NQpriority=1^n<5^ORnISEMPTY";
        assert_eq!(query.and_any(terms.clone()).to_string(), expected);
        assert_eq!(Query::all().and_any(terms).to_string(), "n<5^ORnISEMPTY");
    }

    #[test]
    fn sort_keys_and_junk_of_a_user_are_left_out() {
        assert_eq!(round("^ORDERBYDESCnumber^active=true^EQ"), "active=true");
        assert_eq!(round("^^^"), "");
        assert_eq!(Query::all().order_by("sys_id").to_string(), "ORDERBYsys_id");
    }

    #[test]
    fn words_are_operators_and_not_part_of_the_name() {
        let query =
            Query::parse("short_descriptionLIKEthe ORder^caller_id.emailENDSWITH@x.org^u_INnIN1,2").unwrap();
        assert_eq!(query.fields().collect::<Vec<_>>(), ["short_description", "caller_id.email", "u_"]);
        assert_eq!(
            round("sys_created_onONToday@javascript:gs.beginningOfToday()@javascript:gs.endOfToday()"),
            "sys_created_onONToday@javascript:gs.beginningOfToday()@javascript:gs.endOfToday()"
        );
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        assert!(matches!(Query::parse("drop table"), Err(QueryError::NotACondition(_))));
        assert!(matches!(Query::parse("active"), Err(QueryError::NotACondition(_))));
        assert!(matches!(
            Query::parse("RLQUERYincident.caller_id,>=1^active=true^ENDRLQUERY"),
            Err(QueryError::Unsupported(_))
        ));
    }

    #[test]
    fn values_that_cannot_be_escaped_are_refused() {
        assert_eq!(Term::new("name", Op::Eq, "a^b"), Err(QueryError::Inexpressible));
        assert_eq!(Term::new("name", Op::Eq, "javascript:gs.getUserID()"), Err(QueryError::Inexpressible));
        assert_eq!(Term::is_one_of("name", ["a,b"]), Err(QueryError::Inexpressible));
        assert!(Term::new("a^b", Op::Eq, "x").is_err());
    }

    #[test]
    fn a_doubled_caret_stays_inside_its_value() {
        assert_eq!(round("short_description=a^^b^active=true"), "short_description=a^^b^active=true");
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_idempotent(text in "[a-zA-Z_.^=<>,@ 0-9]{0,60}") {
            if let Ok(query) = Query::parse(&text) {
                let once = query.to_string();
                prop_assert_eq!(Query::parse(&once).expect("our own text parses").to_string(), once);
            }
        }
    }
}
