//! The system calls a contract may not make: a filter of the kernel (seccomp) that refuses them with EPERM.
//!
//! A list of what is denied, not of what is allowed: contracts are any programs, and one that is refused a call it
//! tries goes on as best it can. What is here reaches into other processes, into the kernel's own settings, or around
//! the other guards; nothing of it is needed to compute a result.

use std::collections::BTreeMap;

use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, TargetArch, sock_filter,
};

/// Calls that are refused whatever their arguments are.
const DENIED: &[c_long] = &[
    // Other processes' memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Another view of the files.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // Namespaces, in which a user is another one.
    libc::SYS_unshare,
    libc::SYS_setns,
    // The kernel: its programs, modules, keys, clocks.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    // Calls by way of a queue, which no filter sees.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // What outlives the processes that made it. Also where a run has a namespace for it, which not every machine has: a
    // contract must not live on what other nodes' runs lack.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_semget,
    libc::SYS_semtimedop,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
];

#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[c_long] = &[];

/// Flags of `clone` that make a namespace.
const NAMESPACES: [libc::c_int; 8] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_PTRACE,
];

/// Requests of `ioctl` that pretend that somebody typed at a terminal: TIOCSTI and TIOCLINUX, whose type in `libc` is not
/// the same for every C library.
const TYPED: [u64; 2] = [0x5412, 0x541c];

/// Kinds of sockets left to a contract that may use the network: of this machine, IP, and what the C library asks for
/// the addresses of this machine with.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Whether calls can be filtered on this kind of processor.
pub(super) fn target() -> Option<TargetArch> {
    std::env::consts::ARCH.try_into().ok()
}

/// The filter. `network`: whether the contract may open sockets.
pub(super) fn filter(target: TargetArch, network: bool) -> BpfProgram {
    let mut rules: BTreeMap<i64, Vec<Rule>> = BTreeMap::new();
    let always = DENIED.iter().chain(DENIED_HERE);
    rules.extend(always.map(|call| (*call, Vec::new())));
    rules.insert(libc::SYS_clone, NAMESPACES.iter().map(|flag| rule(&[has(0, *flag as u64)])).collect());
    rules.insert(libc::SYS_ioctl, TYPED.iter().map(|request| rule(&[is(1, *request)])).collect());
    // Limits of others; 0 is the process itself.
    rules.insert(libc::SYS_prlimit64, vec![rule(&[is_not(0, 0)])]);
    if network {
        let other: Vec<Condition> = FAMILIES.iter().map(|family| is_not(0, *family as u64)).collect();
        rules.insert(libc::SYS_socket, vec![rule(&other)]);
    } else {
        rules.insert(libc::SYS_socket, Vec::new());
        // One end of a pair of these may speak to a third, which a stream cannot.
        let datagrams = Condition::new(1, Len::Dword, Op::MaskedEq(0xf), libc::SOCK_DGRAM as u64);
        let not_local = rule(&[is_not(0, libc::AF_UNIX as u64)]);
        rules.insert(libc::SYS_socketpair, vec![not_local, rule(&[datagrams.expect("the second of six arguments")])]);
    }
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), target);
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("far below the kernel's bound");
    missing().into_iter().chain(program).collect()
}

/// What comes first: calls that are as if this kernel had none of them.
///
/// `clone3` has its flags in memory, where no filter looks; the C library then takes `clone`. The other are those of
/// the x32 ABI, which have other numbers and would pass by the list.
fn missing() -> Vec<sock_filter> {
    const X32: u32 = 0x4000_0000;
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const JUMP_FROM: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        // The number of the call is the first word of what a filter sees.
        instruction(LOAD_WORD, 0, 0, 0),
        instruction(JUMP_FROM, 1, 0, X32),
        instruction(JUMP_EQUAL, 0, 1, libc::SYS_clone3 as u32),
        instruction(RETURN, 0, 0, SeccompAction::Errno(libc::ENOSYS as u32).into()),
    ]
}

fn rule(conditions: &[Condition]) -> Rule {
    Rule::new(conditions.to_vec()).expect("at least one condition")
}

fn is(argument: u8, value: u64) -> Condition {
    Condition::new(argument, Len::Dword, Op::Eq, value).expect("one of six arguments")
}

fn is_not(argument: u8, value: u64) -> Condition {
    Condition::new(argument, Len::Dword, Op::Ne, value).expect("one of six arguments")
}

fn has(argument: u8, flag: u64) -> Condition {
    Condition::new(argument, Len::Dword, Op::MaskedEq(flag), flag).expect("one of six arguments")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter says to a call, as the kernel would work it out.
    fn verdict(program: &[sock_filter], call: c_long, args: [u64; 6]) -> u32 {
        let arch: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let word = |offset: u32| match offset {
            0 => call as u32,
            4 => arch,
            16.. => {
                let arg = args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
            _ => panic!("no filter looks at {offset}"),
        };
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let jump = |yes: bool| usize::from(if yes { jt } else { jf });
            match u32::from(code) {
                0x20 => value = word(k),
                0x54 => value &= k,
                0x15 => at += jump(value == k),
                0x25 => at += jump(value > k),
                0x35 => at += jump(value >= k),
                0x05 => at += k as usize,
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn what_is_listed_is_refused_and_what_programs_live_on_is_not() {
        let program = filter(target().expect("a known processor"), false);
        let allow = u32::from(SeccompAction::Allow);
        let refused = u32::from(SeccompAction::Errno(libc::EPERM as u32));
        let missing = u32::from(SeccompAction::Errno(libc::ENOSYS as u32));
        for call in DENIED.iter().chain(DENIED_HERE) {
            assert_eq!(verdict(&program, *call, [0; 6]), refused, "call {call}");
        }
        for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_mmap, libc::SYS_futex, 100_000] {
            assert_eq!(verdict(&program, call, [1; 6]), allow, "call {call}");
        }
        assert_eq!(verdict(&program, libc::SYS_clone3, [0; 6]), missing);
        assert_eq!(verdict(&program, 0x4000_0000 + libc::SYS_ptrace, [0; 6]), missing);
        let fork = [libc::SIGCHLD as u64, 0, 0, 0, 0, 0];
        let thread = [(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64, 0, 0, 0, 0, 0];
        assert_eq!([fork, thread].map(|args| verdict(&program, libc::SYS_clone, args)), [allow, allow]);
        for flag in NAMESPACES {
            let args = [(flag | libc::SIGCHLD) as u32 as u64, 0, 0, 0, 0, 0];
            assert_eq!(verdict(&program, libc::SYS_clone, args), refused, "flag {flag:#x}");
        }
        let pair = |family: i32, kind: i32| [family as u64, kind as u64, 0, 0, 0, 0];
        let stream = pair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC);
        assert_eq!(verdict(&program, libc::SYS_socketpair, stream), allow);
        let datagrams = pair(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC);
        assert_eq!(verdict(&program, libc::SYS_socketpair, datagrams), refused);
        assert_eq!(verdict(&program, libc::SYS_prlimit64, [0; 6]), allow);
        assert_eq!(verdict(&program, libc::SYS_prlimit64, [1, 0, 0, 0, 0, 0]), refused);
        for typed in TYPED {
            assert_eq!(verdict(&program, libc::SYS_ioctl, [3, typed, 0, 0, 0, 0]), refused);
        }
    }

    #[test]
    fn sockets_are_for_contracts_that_may_use_the_network() {
        let target = || target().expect("a known processor");
        let refused = u32::from(SeccompAction::Errno(libc::EPERM as u32));
        let socket = |program: &[sock_filter], family: i32| {
            verdict(program, libc::SYS_socket, [family as u64, 1, 0, 0, 0, 0]) == refused
        };
        let (off, on) = (filter(target(), false), filter(target(), true));
        for family in FAMILIES {
            assert!(socket(&off, family) && !socket(&on, family), "family {family}");
        }
        assert!(socket(&on, libc::AF_PACKET) && socket(&on, libc::AF_VSOCK) && socket(&on, libc::AF_ALG));
    }
}
