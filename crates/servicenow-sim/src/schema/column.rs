//! Columns: what a dictionary row says about one, and how its values behave on the wire (facts §1.4, §7.5).

use std::sync::Arc;

/// How the values of a column are rendered, compared and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Plain text.
    Text,
    /// `true`, `false` or empty.
    Boolean,
    /// A whole number.
    Integer,
    /// A number with a fraction.
    Decimal,
    /// A `sys_id` (or other key) of a row of another table.
    Reference,
    /// Comma-separated `sys_id`s or free e-mail addresses.
    List,
    /// A date-time in UTC.
    DateTime,
    /// A date-time whose empty display value is `UNKNOWN`.
    DueDate,
    /// A date without zone.
    Date,
    /// A date-time without zone conversion.
    LocalDateTime,
    /// A time of day kept as `1970-01-01 HH:mm:ss`.
    Time,
    /// Elapsed time kept as a date-time since 1970.
    Duration,
    /// An amount with a third key in `all` mode.
    Currency,
    /// Append-only text; the value is always empty (facts §1.4).
    Journal,
    /// The merged display of the journal columns.
    JournalList,
    /// Text that is never shown in display form.
    Password,
    /// The name of a table, displayed as its label.
    ClassName,
    /// The domain, `global` unless separated.
    Domain,
}

impl Kind {
    /// The behaviour of a dictionary `internal_type`.
    pub(crate) fn of(internal_type: &str) -> Self {
        match internal_type {
            "boolean" => Self::Boolean,
            "integer" | "int" | "long" | "longint" | "counter" | "order_index" | "repeat_count"
            | "auto_increment" | "day_of_week" | "week_of_month" | "month_of_year" => Self::Integer,
            "decimal" | "float" | "percent_complete" => Self::Decimal,
            "reference" => Self::Reference,
            "glide_list" => Self::List,
            "glide_date_time" | "datetime" | "insert_timestamp" | "sys_created_on" | "sys_updated_on" => {
                Self::DateTime
            }
            "due_date" => Self::DueDate,
            "glide_date" => Self::Date,
            "date" => Self::LocalDateTime,
            "glide_time" | "time" | "glide_utc_time" => Self::Time,
            "glide_duration" | "timer" => Self::Duration,
            "currency" | "price" => Self::Currency,
            "journal" | "journal_input" => Self::Journal,
            "journal_list" => Self::JournalList,
            "password" | "password2" => Self::Password,
            "sys_class_name" => Self::ClassName,
            "domain_id" => Self::Domain,
            _ => Self::Text,
        }
    }

    /// True when values are kept and compared as date-times.
    pub(crate) fn is_temporal(self) -> bool {
        matches!(self, Self::DateTime | Self::DueDate | Self::LocalDateTime | Self::Time | Self::Duration)
    }

    /// True when values are compared as numbers.
    pub(crate) fn is_numeric(self) -> bool {
        matches!(self, Self::Integer | Self::Decimal | Self::Currency)
    }
}

/// What happens to a reference when the row it names is deleted (facts §1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Cascade {
    /// The reference is emptied: the default rule.
    #[default]
    Clear,
    /// The referring row is deleted too.
    Delete,
    /// The delete is refused.
    Restrict,
    /// The reference dangles.
    None,
}

impl Cascade {
    /// The rule named by `sys_dictionary.reference_cascade_rule`.
    pub(crate) fn of(text: &str) -> Self {
        match text {
            "delete" | "cascade" | "delete_no_workflow" => Self::Delete,
            "restrict" => Self::Restrict,
            "none" => Self::None,
            _ => Self::Clear,
        }
    }

    /// The name of the rule in the dictionary.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clear => "",
            Self::Delete => "delete",
            Self::Restrict => "restrict",
            Self::None => "none",
        }
    }
}

/// How firmly a column is read-only (facts §1.6, the Read-only option).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ReadOnly {
    /// Writable.
    #[default]
    No,
    /// Read-only on forms only; the Table API writes it.
    Display,
    /// Not writable through the Table API: the value is silently kept.
    Strict,
}

impl ReadOnly {
    /// `read_only_option` of the dictionary (facts §1.6).
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::No => "",
            Self::Display => "display_read_only",
            Self::Strict => "strict_read_only",
        }
    }
}

/// One column of a table, as its dictionary row describes it.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    /// The name of the column.
    pub(crate) element: Arc<str>,
    /// The label in English.
    pub(crate) label: String,
    /// The dictionary type.
    pub(crate) internal_type: String,
    /// The behaviour that the type stands for.
    pub(crate) kind: Kind,
    /// The advisory length.
    pub(crate) max_length: u32,
    /// The table a reference or list points to.
    pub(crate) reference: Option<Arc<str>>,
    /// The column of that table which the value holds; `sys_id` unless stated.
    pub(crate) reference_key: Option<String>,
    /// The delete rule of a reference.
    pub(crate) cascade: Cascade,
    /// Marked mandatory in the dictionary, which web services do not enforce (facts §1.6).
    pub(crate) mandatory: bool,
    /// The read-only option.
    pub(crate) read_only: ReadOnly,
    /// The column shown for a reference to this table.
    pub(crate) display: bool,
    /// Values are unique.
    pub(crate) unique: bool,
    /// The dropdown kind: 0 none, 1 with none, 2 suggestion, 3 without none.
    pub(crate) choice: u8,
    /// The table whose choices are used instead.
    pub(crate) choice_table: Option<String>,
    /// The column whose choices are used instead.
    pub(crate) choice_field: Option<String>,
    /// The column that the choices depend on.
    pub(crate) dependent: Option<String>,
    /// The value of a new row.
    pub(crate) default: String,
    /// Computed, never written.
    pub(crate) computed: bool,
    /// Active in the dictionary; inactive columns are still returned (facts §7.1).
    pub(crate) active: bool,
    /// The attributes list.
    pub(crate) attributes: String,
    /// The hint of the label.
    pub(crate) hint: String,
    /// The display value of an empty choice is JSON null (facts §1.4).
    pub(crate) null_display: bool,
    /// An equality index is kept.
    pub(crate) indexed: bool,
}

impl Column {
    /// A column with nothing set but its name, label and type.
    pub(crate) fn new(element: &str, label: &str, internal_type: &str) -> Self {
        Self {
            element: element.into(),
            label: label.to_owned(),
            internal_type: internal_type.to_owned(),
            kind: Kind::of(internal_type),
            max_length: default_length(internal_type),
            reference: None,
            reference_key: None,
            cascade: Cascade::Clear,
            mandatory: false,
            read_only: ReadOnly::No,
            display: false,
            unique: false,
            choice: 0,
            choice_table: None,
            choice_field: None,
            dependent: None,
            default: String::new(),
            computed: false,
            active: true,
            attributes: String::new(),
            hint: String::new(),
            null_display: false,
            indexed: false,
        }
    }

    /// True when the column is a dropdown.
    pub(crate) fn has_choices(&self) -> bool {
        self.choice != 0
    }
}

/// The length that the dictionary gives a type when none is stated.
pub(crate) fn default_length(internal_type: &str) -> u32 {
    match internal_type {
        "GUID" | "reference" | "domain_id" | "document_id" => 32,
        "journal" | "journal_input" | "journal_list" | "html" | "script" | "xml" | "wide_text"
        | "glide_list" | "translated_html" => 4000,
        "sys_class_name" | "table_name" => 80,
        "domain_path" | "password2" => 255,
        _ => 40,
    }
}
