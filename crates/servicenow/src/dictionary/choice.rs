//! Choices: from what people see to what is stored.

use super::{Choice, ChoiceRule, FieldDef};

/// The stored value behind a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// This one.
    Value(String),
    /// None.
    Unknown,
    /// Several; these.
    Ambiguous(Vec<String>),
}

impl FieldDef {
    /// The stored value behind a label. `dependent` is the value of [`FieldDef::dependent_on`], if it is known.
    /// Choices that are still offered come before those that are not; a stored value stands for itself when no
    /// label reads like it; and a list that only suggests, or that the caller may not see, leaves the decision
    /// to the instance.
    pub fn resolve_label(&self, label: &str, dependent: Option<&str>) -> Resolution {
        let applying = || self.choices.iter().filter(|choice| choice.applies_to(dependent));
        for inactive in [false, true] {
            let mut values: Vec<String> = Vec::new();
            for choice in applying().filter(|c| c.inactive == inactive && c.label == label) {
                if !values.contains(&choice.value) {
                    values.push(choice.value.clone());
                }
            }
            match values.len() {
                0 => {}
                1 => return Resolution::Value(values.remove(0)),
                _ => return Resolution::Ambiguous(values),
            }
        }
        let decided_elsewhere = self.choice != ChoiceRule::Strict || self.choices.is_empty();
        match decided_elsewhere || applying().any(|choice| choice.value == label) {
            true => Resolution::Value(label.to_owned()),
            false => Resolution::Unknown,
        }
    }

    /// Whether the instance would keep a stored value; it drops one that a binding list does not have, without
    /// a word.
    pub fn accepts(&self, value: &str) -> bool {
        self.choice != ChoiceRule::Strict
            || self.choices.is_empty()
            || self.choices.iter().any(|choice| choice.value == value)
    }

    /// The choices on offer, each once whatever its languages.
    pub fn offers(&self, dependent: Option<&str>) -> Vec<&Choice> {
        let mut offers: Vec<&Choice> = Vec::new();
        for choice in self.choices.iter().filter(|c| !c.inactive && c.applies_to(dependent)) {
            if !offers.iter().any(|other| other.value == choice.value) {
                offers.push(choice);
            }
        }
        offers
    }
}

impl Choice {
    /// Whether the choice is there for a value of the field it depends on; unknown counts as yes.
    fn applies_to(&self, dependent: Option<&str>) -> bool {
        self.dependent_value.is_empty() || dependent.is_none_or(|value| value == self.dependent_value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(value: &str, label: &str, dependent_value: &str, inactive: bool) -> Choice {
        Choice {
            value: value.to_owned(),
            label: label.to_owned(),
            language: "en".to_owned(),
            inactive,
            dependent_value: dependent_value.to_owned(),
        }
    }

    fn field(choice_rule: ChoiceRule) -> FieldDef {
        FieldDef {
            name: "subcategory".to_owned(),
            choice: choice_rule,
            choices: vec![
                choice("os", "Operating System", "software", false),
                choice("mail", "Email", "software", false),
                choice("disk", "Disk", "hardware", false),
                choice("disk2", "Disk", "database", false),
                choice("tape", "Tape", "hardware", true),
                choice("old", "Disk", "hardware", true),
            ],
            ..FieldDef::default()
        }
    }

    #[test]
    fn a_label_means_the_choice_that_goes_with_the_other_field() {
        let field = field(ChoiceRule::Strict);
        let value = |text: &str| Resolution::Value(text.to_owned());
        assert_eq!(field.resolve_label("Disk", Some("hardware")), value("disk"));
        assert_eq!(field.resolve_label("Disk", Some("database")), value("disk2"));
        assert_eq!(
            field.resolve_label("Disk", None),
            Resolution::Ambiguous(vec!["disk".to_owned(), "disk2".to_owned()])
        );
        assert_eq!(field.resolve_label("Email", Some("hardware")), Resolution::Unknown);
        assert_eq!(field.resolve_label("Tape", Some("hardware")), value("tape"));
        assert_eq!(field.resolve_label("mail", None), value("mail"));
        assert_eq!(field.resolve_label("invalid", None), Resolution::Unknown);
    }

    #[test]
    fn a_list_that_only_suggests_binds_nobody() {
        let field = field(ChoiceRule::Suggestion);
        assert_eq!(field.resolve_label("anything", None), Resolution::Value("anything".to_owned()));
        assert!(field.accepts("anything"));
        assert!(!FieldDef { choice: ChoiceRule::Strict, ..field }.accepts("anything"));
    }

    #[test]
    fn offers_leave_out_what_is_no_longer_offered() {
        let field = field(ChoiceRule::Strict);
        let labels: Vec<&str> = field.offers(Some("hardware")).iter().map(|c| c.label.as_str()).collect();
        assert_eq!(labels, ["Disk"]);
    }
}
