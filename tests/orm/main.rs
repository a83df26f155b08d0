//! Poolers and object-relational mappers run unmodified against foreign tables, with the code of their pages.

mod desk;
mod python;
mod ruby;
mod script;
mod sqlx;
