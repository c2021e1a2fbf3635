//! One file for each verb.

pub(crate) mod audit;
mod clones;
pub(crate) mod gc;
pub(crate) mod generate;
pub(crate) mod guard;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod merge;
pub(crate) mod plan;
pub(crate) mod policy;
pub(crate) mod ps;
pub(crate) mod restore;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod verify;
