//! SQLite: ledgers, certificates, the vote journal, inputs.
