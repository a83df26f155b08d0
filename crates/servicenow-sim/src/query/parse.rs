//! The grammar of encoded queries (facts §2.1, §2.2).
//!
//! `^` joins conditions, `^OR` binds to the condition directly before it, `^NQ` starts a whole new query, `^EQ` ends
//! one. Junk is tolerated as measured: `^^^` alone is no condition at all. A doubled `^` inside a value is a literal
//! caret (facts §2.3). Text search, `RLQUERY`, `JOIN`, `DYNAMIC` and `IN_HIERARCHY` are taken for unknown conditions
//! and dropped.

/// An operator of a condition, as far as the Table API filters by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Contains,
    NotContains,
    StartsWith,
    EndsWith,
    In,
    NotIn,
    IsEmpty,
    IsNotEmpty,
    EmptyString,
    Anything,
    Between,
    SameAs,
    NotSameAs,
    GreaterField,
    LessField,
    GreaterOrEqualField,
    LessOrEqualField,
    On,
    NotOn,
    Relative(Relation),
    DatePart,
    MoreThan,
    LessThan,
    InstanceOf,
}

/// The comparison of a `RELATIVE..` operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Relation {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Equal,
}

/// Operators by their text; a longer text comes before its own prefix.
const OPERATORS: &[(&str, Option<Operator>)] = &[
    ("GT_OR_EQUALS_FIELD", Some(Operator::GreaterOrEqualField)),
    ("LT_OR_EQUALS_FIELD", Some(Operator::LessOrEqualField)),
    ("GT_FIELD", Some(Operator::GreaterField)),
    ("LT_FIELD", Some(Operator::LessField)),
    ("DOES NOT CONTAIN", Some(Operator::NotContains)),
    ("NOT LIKE", Some(Operator::NotContains)),
    ("NOT IN", Some(Operator::NotIn)),
    ("CONTAINS", Some(Operator::Contains)),
    ("LIKE", Some(Operator::Contains)),
    ("STARTSWITH", Some(Operator::StartsWith)),
    ("ENDSWITH", Some(Operator::EndsWith)),
    ("IN_HIERARCHY", None),
    ("INSTANCEOF", Some(Operator::InstanceOf)),
    ("IN", Some(Operator::In)),
    ("ISEMPTY", Some(Operator::IsEmpty)),
    ("ISNOTEMPTY", Some(Operator::IsNotEmpty)),
    ("EMPTYSTRING", Some(Operator::EmptyString)),
    ("ANYTHING", Some(Operator::Anything)),
    ("BETWEEN", Some(Operator::Between)),
    ("NSAMEAS", Some(Operator::NotSameAs)),
    ("SAMEAS", Some(Operator::SameAs)),
    ("NOTON", Some(Operator::NotOn)),
    ("ON", Some(Operator::On)),
    ("RELATIVEGT", Some(Operator::Relative(Relation::Greater))),
    ("RELATIVEGE", Some(Operator::Relative(Relation::GreaterOrEqual))),
    ("RELATIVELT", Some(Operator::Relative(Relation::Less))),
    ("RELATIVELE", Some(Operator::Relative(Relation::LessOrEqual))),
    ("RELATIVEEE", Some(Operator::Relative(Relation::Equal))),
    ("DATEPART", Some(Operator::DatePart)),
    ("MORETHAN", Some(Operator::MoreThan)),
    ("LESSTHAN", Some(Operator::LessThan)),
    ("!=", Some(Operator::NotEqual)),
    ("<>", Some(Operator::NotEqual)),
    ("<=", Some(Operator::LessOrEqual)),
    (">=", Some(Operator::GreaterOrEqual)),
    ("<", Some(Operator::Less)),
    (">", Some(Operator::Greater)),
    ("=", Some(Operator::Equal)),
    ("!*", Some(Operator::NotContains)),
    ("*", Some(Operator::Contains)),
    ("%", Some(Operator::EndsWith)),
];

/// One condition: a field or dot-walk, an operator, a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    /// The field or dot-walked path.
    pub(crate) field: String,
    /// The operator.
    pub(crate) operator: Operator,
    /// The value, carets unescaped.
    pub(crate) value: String,
}

/// A parsed encoded query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query {
    /// Queries joined by `^NQ`, each a list of and-ed groups of or-ed conditions.
    pub(crate) alternatives: Vec<Vec<Vec<Condition>>>,
    /// Sort fields from left to right; true for descending.
    pub(crate) order: Vec<(String, bool)>,
    /// Fields of `^GROUPBY`.
    pub(crate) group_by: Vec<String>,
    /// Something in the text was no condition at all.
    pub(crate) dropped: bool,
}

impl Query {
    /// Parses a text; nothing is ever refused (facts §2.1).
    pub(crate) fn parse(text: &str) -> Self {
        let mut query = Self { alternatives: vec![Vec::new()], ..Self::default() };
        let mut related_list = false;
        for token in tokens(text) {
            if related_list {
                related_list = !token.starts_with("ENDRLQUERY");
            } else if token.starts_with("RLQUERY") {
                (related_list, query.dropped) = (true, true);
            } else if let Some(field) = token.strip_prefix("ORDERBYDESC") {
                query.order.push((field.to_owned(), true));
            } else if let Some(field) = token.strip_prefix("ORDERBY") {
                query.order.push((field.to_owned(), false));
            } else if let Some(fields) = token.strip_prefix("GROUPBY") {
                query.group_by.extend(fields.split(',').map(str::to_owned));
            } else if token == "EQ" {
            } else if let Some(rest) = token.strip_prefix("NQ") {
                query.alternatives.push(Vec::new());
                query.add(rest, false);
            } else if let Some(rest) = token.strip_prefix("OR") {
                query.add(rest, true);
            } else {
                query.add(&token, false);
            }
        }
        query
    }

    fn add(&mut self, text: &str, or: bool) {
        if text.is_empty() {
            return;
        }
        let Some(condition) = parse_condition(text) else {
            self.dropped = true;
            return;
        };
        let groups = self.alternatives.last_mut().expect("there is always one alternative");
        match groups.last_mut() {
            Some(group) if or => group.push(condition),
            _ => groups.push(vec![condition]),
        }
    }

    /// True when no condition was read.
    #[cfg(test)]
    pub(crate) fn is_unconditional(&self) -> bool {
        self.alternatives.iter().all(Vec::is_empty)
    }

    /// All conditions in reading order.
    pub(crate) fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.alternatives.iter().flatten().flatten()
    }
}

/// Splits at single carets; a doubled one after some text is a literal caret.
fn tokens(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut token = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '^' {
            token.push(c);
        } else if !token.is_empty() && chars.peek() == Some(&'^') {
            chars.next();
            token.push('^');
        } else if !token.is_empty() {
            out.push(std::mem::take(&mut token));
        }
    }
    if !token.is_empty() {
        out.push(token);
    }
    out
}

fn parse_condition(text: &str) -> Option<Condition> {
    let end = text.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.'))?;
    let (field, rest) = text.split_at(end);
    if field.is_empty() {
        return None;
    }
    let (name, operator) = OPERATORS.iter().find(|(name, _)| rest.starts_with(name))?;
    Some(Condition { field: field.to_owned(), operator: (*operator)?, value: rest[name.len()..].to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(text: &str) -> Vec<Vec<usize>> {
        Query::parse(text).alternatives.iter().map(|a| a.iter().map(Vec::len).collect()).collect()
    }

    #[test]
    fn or_binds_only_to_the_condition_before_it() {
        assert_eq!(shape("a=1^ORb=2^c=3^ORd=4"), vec![vec![2, 2]]);
        assert_eq!(shape("a=1^ORb=2^NQc=3^EQ"), vec![vec![2], vec![1]]);
    }

    #[test]
    fn junk_is_tolerated_as_measured() {
        assert!(Query::parse("^^^").is_unconditional());
        assert_eq!(Query::parse("^state=1"), Query::parse("state=1"));
        assert_eq!(Query::parse("state==1").conditions().next().expect("one").value, "=1");
        assert!(Query::parse("STATE=1").is_unconditional(), "operators and fields are case-sensitive");
    }

    #[test]
    fn sorting_may_stand_anywhere_and_keeps_its_order() {
        let query = Query::parse("ORDERBYsys_created_on^a=1^ORDERBYDESCnumber^ORb=2");
        assert_eq!(query.order, vec![("sys_created_on".to_owned(), false), ("number".to_owned(), true)]);
        assert_eq!(query.alternatives, Query::parse("a=1^ORb=2").alternatives);
    }

    #[test]
    fn a_doubled_caret_in_a_value_is_one_caret() {
        let query = Query::parse("short_description=a^^b^active=true");
        let values: Vec<&str> = query.conditions().map(|c| c.value.as_str()).collect();
        assert_eq!(values, ["a^b", "true"]);
    }

    #[test]
    fn every_operator_of_the_operator_table_is_read() {
        for (name, operator) in OPERATORS {
            let query = Query::parse(&format!("field{name}x"));
            assert_eq!(query.conditions().next().map(|c| c.operator), *operator, "{name}");
        }
    }

    #[test]
    fn related_lists_joins_and_text_search_are_dropped() {
        let query =
            Query::parse("a=1^RLQUERYincident.caller_id,>=1^active=true^ENDRLQUERY^123TEXTQUERY321=mail^b=2");
        assert_eq!(query.conditions().map(|c| c.field.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(query.dropped);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-zA-Z0-9_.^=!<>*%@, ]{0,120}") {
            Query::parse(&text);
        }

        #[test]
        fn a_built_query_is_read_back(conditions in prop::collection::vec(("[a-z_]{1,12}", "[A-Za-z0-9 ]{0,12}", any::<bool>()), 1..6)) {
            let mut text = String::new();
            for (at, (field, value, or)) in conditions.iter().enumerate() {
                if at > 0 { text.push_str(if *or { "^OR" } else { "^" }); }
                text.push_str(&format!("{field}={value}"));
            }
            let query = Query::parse(&text);
            let read: Vec<(String, String)> = query.conditions().map(|c| (c.field.clone(), c.value.clone())).collect();
            let built: Vec<(String, String)> = conditions.iter().map(|(f, v, _)| (f.clone(), v.clone())).collect();
            prop_assert_eq!(read, built);
        }
    }
}
