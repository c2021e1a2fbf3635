//! What the exit status of every verb means, and which error leads to which.
//!
//! | status | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the answer is no: a secret was found, or an image is damaged |
//! | 2 | wrong usage: nothing was looked at, the command has to be changed |
//! | 3 | refused: the checkpoint would not have been clean, so none was made |
//! | 4 | the hypervisor, the guest or the host failed |

use elision_audit::AuditError;
use elision_image::ImageError;
use elision_kernel::KernelError;
use elision_plan::PlanError;
use elision_qemu::QemuError;
use std::process::ExitCode;

/// The exit status of `elision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// A negative answer: a secret was found, or an image is damaged.
    Negative = 1,
    /// The command line, a policy file or a name on it is wrong.
    Usage = 2,
    /// The checkpoint would not have been clean.
    Refused = 3,
    /// The hypervisor, the guest or the host failed.
    Failed = 4,
}

impl Exit {
    /// The number.
    pub(crate) fn status(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status())
    }
}

impl From<&KernelError> for Exit {
    fn from(_: &KernelError) -> Self {
        Self::Failed
    }
}

impl From<&PlanError> for Exit {
    fn from(error: &PlanError) -> Self {
        match error {
            // Whether anything would be left out cannot even be asked.
            PlanError::Kernel(
                KernelError::NotFound | KernelError::Incomplete(_) | KernelError::Memory(_),
            ) => Self::Failed,
            _ => Self::Refused,
        }
    }
}

impl From<&ImageError> for Exit {
    fn from(error: &ImageError) -> Self {
        match error {
            ImageError::Exists(_)
            | ImageError::BadTarget(_)
            | ImageError::NoParent(_)
            | ImageError::NotAnImage(_)
            | ImageError::Stranger { .. }
            | ImageError::NoBase { .. }
            | ImageError::Format { .. } => Self::Usage,
            ImageError::Manifest { .. }
            | ImageError::Missing(_)
            | ImageError::Size { .. }
            | ImageError::Damaged(_)
            | ImageError::BrokenBase { .. }
            | ImageError::OtherBase(_)
            | ImageError::LongChain(_)
            | ImageError::Table { .. }
            | ImageError::Exclusions { .. } => Self::Negative,
            ImageError::BadPlan { .. } => Self::Refused,
            _ => Self::Failed,
        }
    }
}

impl From<&QemuError> for Exit {
    fn from(error: &QemuError) -> Self {
        match error {
            QemuError::Command { .. } => Self::Usage,
            // Device state that is not understood could hold anything.
            QemuError::SharedBlock { .. } | QemuError::Missing { .. } | QemuError::Vcpu { .. } => {
                Self::Refused
            }
            _ => Self::Failed,
        }
    }
}

impl From<&AuditError> for Exit {
    fn from(error: &AuditError) -> Self {
        match error {
            AuditError::Source { .. } | AuditError::Compile(_) => Self::Failed,
            _ => Self::Usage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_a_kernel_is_not_a_refusal() {
        assert_eq!(Exit::from(&PlanError::Kernel(KernelError::NotFound)), Exit::Failed);
        let torn = KernelError::Torn { what: "task list", at: elision_memory::Gva(1), why: "it is a loop" };
        assert_eq!(Exit::from(&PlanError::Kernel(torn)), Exit::Refused);
        assert_eq!(Exit::from(&PlanError::Unaccounted(vec![])), Exit::Refused);
    }

    #[test]
    fn a_damaged_image_is_a_negative_answer_and_another_directory_is_wrong_usage() {
        assert_eq!(Exit::from(&ImageError::Missing("ram.img".into())), Exit::Negative);
        assert_eq!(Exit::from(&ImageError::NotAnImage("x".into())), Exit::Usage);
    }
}
