//! The system calls a contract may not make: a filter of the kernel (seccomp) that refuses them with EPERM.
//!
//! A list of what is denied, not of what is allowed: contracts are any programs, and one that is refused a call it
//! tries goes on as best it can. What is here reaches into other processes, into the kernel's own settings, or around
//! the other guards; nothing of it is needed to compute a result.
//!
//! The filter searches the numbers by halves. Every run has it installed anew, and the kernel then tries it on each call
//! that there is: one that compares a call with one number after the other costs several times as much.

use std::collections::BTreeMap;

use nix::libc::{self, c_long, sock_filter};

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
const TYPED: [u32; 2] = [0x5412, 0x541c];

/// Kinds of sockets left to a contract that may use the network: of this machine, IP, and what the C library asks for
/// the addresses of this machine with.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// How the kernel names this kind of processor to a filter (`AUDIT_ARCH_`). `None`: calls cannot be filtered on it.
pub(super) fn processor() -> Option<u32> {
    match std::env::consts::ARCH {
        "x86_64" => Some(0xc000_003e),
        "aarch64" => Some(0xc000_00b7),
        "riscv64" => Some(0xc000_00f3),
        _ => None,
    }
}

/// The filter. `network`: whether the contract may open sockets.
///
/// At most some hundred instructions, far below the kernel's bound of 4,096.
pub(super) fn filter(processor: u32, network: bool) -> Vec<sock_filter> {
    // A call by the rules of another kind of processor has other numbers.
    let mut program = vec![
        load(WORD_PROCESSOR),
        instruction(JUMP_EQUAL, processor, 1, 0),
        instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
        load(WORD_CALL),
    ];
    program.extend(search(&ranges(&special(network))));
    program
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Refused,
    /// As if this kernel did not have it.
    Missing,
    /// Allowed when all of these hold.
    If(Vec<Check>),
}

/// What the lower half of an argument must be, or must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    /// From 0 to 5.
    argument: u32,
    /// The bits that are looked at.
    mask: u32,
    /// What they are compared with; few.
    values: Vec<u32>,
    /// Whether they must be one of these, or none.
    is_one_of: bool,
}

/// The calls that are not just allowed.
fn special(network: bool) -> BTreeMap<u32, Verdict> {
    let check =
        |argument, mask, values: &[u32], is_one_of| Check { argument, mask, values: values.to_vec(), is_one_of };
    let is_one_of = |argument, values: &[u32]| check(argument, u32::MAX, values, true);
    let flags = NAMESPACES.iter().fold(0, |flags, flag| flags | flag.cast_unsigned());
    let mut special: BTreeMap<c_long, Verdict> =
        DENIED.iter().chain(DENIED_HERE).map(|call| (*call, Verdict::Refused)).collect();
    special.insert(libc::SYS_clone, Verdict::If(vec![check(0, flags, &[0], true)]));
    // Its flags are in memory, where no filter looks. The C library then takes `clone`.
    special.insert(libc::SYS_clone3, Verdict::Missing);
    special.insert(libc::SYS_ioctl, Verdict::If(vec![check(1, u32::MAX, &TYPED, false)]));
    // Limits of others; 0 is the process itself.
    special.insert(libc::SYS_prlimit64, Verdict::If(vec![is_one_of(0, &[0])]));
    if network {
        special.insert(libc::SYS_socket, Verdict::If(vec![is_one_of(0, &FAMILIES.map(i32::cast_unsigned))]));
    } else {
        special.insert(libc::SYS_socket, Verdict::Refused);
        let local = is_one_of(0, &[libc::AF_UNIX.cast_unsigned()]);
        // One end of a pair of these may speak to a third, which a stream cannot.
        let no_datagrams = check(1, 0xf, &[libc::SOCK_DGRAM.cast_unsigned()], false);
        special.insert(libc::SYS_socketpair, Verdict::If(vec![local, no_datagrams]));
    }
    let number = |call: c_long| u32::try_from(call).expect("calls are counted from 0");
    special.into_iter().map(|(call, verdict)| (number(call), verdict)).collect()
}

/// All numbers that a call can have, as ranges of one verdict each: where they begin, in ascending order from 0.
fn ranges(special: &BTreeMap<u32, Verdict>) -> Vec<(u32, Verdict)> {
    /// Those of the x32 ABI, which have other numbers and would pass by the list.
    const X32: u32 = 0x4000_0000;
    let mut ranges = vec![(0, Verdict::Allowed)];
    let ends = special.iter().flat_map(|(call, verdict)| [(*call, verdict.clone()), (call + 1, Verdict::Allowed)]);
    for (begin, verdict) in ends.chain([(X32, Verdict::Missing)]) {
        ranges.pop_if(|(last, _)| *last == begin);
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((begin, verdict));
        }
    }
    ranges
}

/// The instructions that come to the verdict of the range in which the number is that was loaded.
fn search(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    let [(_, verdict)] = ranges else {
        let (lower, upper) = ranges.split_at(ranges.len() / 2);
        let (begin, lower, upper) = (upper[0].0, search(lower), search(upper));
        // One that depends on the number it was loaded with goes no further than a byte counts.
        let over = match u8::try_from(lower.len()) {
            Ok(length) => vec![instruction(JUMP_FROM, begin, length, 0)],
            Err(_) => vec![instruction(JUMP_FROM, begin, 0, 1), instruction(JUMP, lower.len() as u32, 0, 0)],
        };
        return [over, lower, upper].concat();
    };
    let mut program = Vec::new();
    let (checks, end) = match verdict {
        Verdict::Allowed => (&[][..], ALLOWED),
        Verdict::Refused => (&[][..], REFUSED),
        Verdict::Missing => (&[][..], MISSING),
        Verdict::If(checks) => (&checks[..], ALLOWED),
    };
    for check in checks {
        program.push(load(FIRST_ARGUMENT + ARGUMENT_BYTES * check.argument));
        if check.mask != u32::MAX {
            program.push(instruction(AND, check.mask, 0, 0));
        }
        // Over the refusal, or to it.
        let compared = check
            .values
            .iter()
            .enumerate()
            .map(|(at, value)| instruction(JUMP_EQUAL, *value, (check.values.len() - at) as u8, 0));
        program.extend(compared);
        if !check.is_one_of {
            program.push(instruction(JUMP, 1, 0, 0));
        }
        program.push(instruction(RETURN, REFUSED, 0, 0));
    }
    program.push(instruction(RETURN, end, 0, 0));
    program
}

// What a filter answers with.
const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const MISSING: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

// Where in what it sees of a call there is what (`struct seccomp_data`). Of an argument the lower half comes first on all
// processors that there is a number for above.
const WORD_CALL: u32 = 0;
const WORD_PROCESSOR: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;

// What its instructions are.
const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const JUMP_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const JUMP_FROM: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

fn load(offset: u32) -> sock_filter {
    instruction(LOAD, offset, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> u32 {
        processor().expect("a known processor")
    }

    /// The same filter, by a crate that makes one out of a list of rules.
    fn by_rules(network: bool) -> Vec<sock_filter> {
        use seccompiler::{SeccompAction as Action, SeccompCmpArgLen::Dword, SeccompCmpOp as Op, SeccompFilter};
        let condition = |argument, op, value| {
            seccompiler::SeccompCondition::new(argument, Dword, op, value).expect("one of six arguments")
        };
        let is = |argument, value| condition(argument, Op::Eq, value);
        let is_not = |argument, value| condition(argument, Op::Ne, value);
        let rule = |conditions| seccompiler::SeccompRule::new(conditions).expect("at least one condition");
        let mut rules: BTreeMap<i64, Vec<_>> = BTreeMap::new();
        rules.extend(DENIED.iter().chain(DENIED_HERE).map(|call| (*call, Vec::new())));
        let flags = NAMESPACES.map(|flag| flag as u64);
        let has = |flag| rule(vec![condition(0, Op::MaskedEq(flag), flag)]);
        rules.insert(libc::SYS_clone, flags.map(has).to_vec());
        rules.insert(libc::SYS_ioctl, TYPED.map(|request| rule(vec![is(1, request.into())])).to_vec());
        rules.insert(libc::SYS_prlimit64, vec![rule(vec![is_not(0, 0)])]);
        if network {
            let other = FAMILIES.map(|family| is_not(0, family as u64));
            rules.insert(libc::SYS_socket, vec![rule(other.to_vec())]);
        } else {
            rules.insert(libc::SYS_socket, Vec::new());
            let datagrams = condition(1, Op::MaskedEq(0xf), libc::SOCK_DGRAM as u64);
            let not_local = is_not(0, libc::AF_UNIX as u64);
            rules.insert(libc::SYS_socketpair, vec![rule(vec![not_local]), rule(vec![datagrams])]);
        }
        let refused = Action::Errno(libc::EPERM as u32);
        let target = std::env::consts::ARCH.try_into().expect("a known processor");
        let made = SeccompFilter::new(rules, Action::Allow, refused, target).expect("rules as they should be");
        let program = seccompiler::BpfProgram::try_from(made).expect("not too long");
        program.into_iter().map(|it| instruction(it.code.into(), it.k, it.jt, it.jf)).collect()
    }

    #[test]
    fn the_search_by_halves_comes_to_what_a_look_at_each_rule_comes_to() {
        let of_interest = [0, 1, 2, 3, 5, 10, 16, 17, 18, 0x5412, 0x541c, 0x1_0000_0000, 0x1_0000_0001, u64::MAX];
        let flags = NAMESPACES.map(|flag| flag.cast_unsigned().into());
        let values: Vec<u64> = of_interest.into_iter().chain(flags).collect();
        for network in [false, true] {
            let (ours, theirs) = (filter(here(), network), by_rules(network));
            for call in (0..1_000).filter(|call| *call != libc::SYS_clone3) {
                let takes_part = [libc::SYS_clone, libc::SYS_ioctl, libc::SYS_socket].contains(&call)
                    || [libc::SYS_socketpair, libc::SYS_prlimit64].contains(&call);
                // Of the others no argument is looked at.
                let values = if takes_part { &values[..] } else { &values[..1] };
                for first in values {
                    for second in values {
                        let args = [*first, *second, 0, 0, 0, 0];
                        assert_eq!(verdict(&ours, call, args), verdict(&theirs, call, args), "{call} {args:x?}");
                    }
                }
            }
            assert!(ours.len() < theirs.len(), "{} and {} instructions", ours.len(), theirs.len());
        }
    }

    #[test]
    fn calls_by_the_rules_of_another_processor_end_the_contract() {
        let program = filter(here() ^ 1, true);
        assert_eq!(verdict(&program, libc::SYS_read, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    }

    /// What the filter says to a call, as the kernel would work it out.
    fn verdict(program: &[sock_filter], call: c_long, args: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            0 => call as u32,
            4 => here(),
            16.. => {
                let arg = args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
            _ => panic!("no filter looks at {offset}"),
        };
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
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
        let program = filter(here(), false);
        let (allow, refused, missing) = (ALLOWED, REFUSED, MISSING);
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
            assert_eq!(verdict(&program, libc::SYS_ioctl, [3, typed.into(), 0, 0, 0, 0]), refused);
        }
    }

    #[test]
    fn sockets_are_for_contracts_that_may_use_the_network() {
        let socket = |program: &[sock_filter], family: i32| {
            verdict(program, libc::SYS_socket, [family as u64, 1, 0, 0, 0, 0]) == REFUSED
        };
        let (off, on) = (filter(here(), false), filter(here(), true));
        for family in FAMILIES {
            assert!(socket(&off, family) && !socket(&on, family), "family {family}");
        }
        assert!(socket(&on, libc::AF_PACKET) && socket(&on, libc::AF_VSOCK) && socket(&on, libc::AF_ALG));
    }
}
