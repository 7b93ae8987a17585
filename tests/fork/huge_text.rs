//! The zygote's code on huge pages, in a program that is linked for it and in one that is not: a fork gives the same
//! workers. `ci/check.sh` runs all cases in a program that is.

use tokio_run_in_process::{Error, Zygote};

use crate::harness::{capabilities, eventually, multi_thread, send_signal, skip};

crate::cases![code_is_on_huge_pages_if_the_program_is_linked_for_them, code_that_was_patched_is_not_moved,];

const HUGE: u64 = 2 << 20;

/// Whether the linker kept the segments of this program as far apart as huge pages need: the alignment in elf(5)'s program
/// headers.
fn is_linked_for_it() -> bool {
    let program = std::fs::read("/proc/self/exe").unwrap();
    let number = |at: usize, size: usize| {
        program[at..at + size].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    };
    let (headers, count) = (usize::try_from(number(32, 8)).unwrap(), usize::try_from(number(56, 2)).unwrap());
    let loads = (0..count).map(|n| headers + n * 56).filter(|&header| number(header, 4) == u64::from(libc::PT_LOAD));
    loads.map(|header| number(header + 48, 8)).all(|alignment| alignment >= HUGE)
}

fn kernel_has_them() -> bool {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    enabled.is_ok_and(|enabled| !enabled.contains("[never]"))
}

/// How many kilobytes of the mapping of this very function are on huge pages.
#[inline(never)]
async fn huge_kilobytes() -> u64 {
    let address = is_linked_for_it as *const () as u64;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let holds = |line: &&str| {
        let range = line.split(' ').next().unwrap().split_once('-');
        let number = |text| u64::from_str_radix(text, 16).ok();
        range.is_some_and(|(from, to)| number(from) <= Some(address) && Some(address) < number(to))
    };
    let mut lines = smaps.lines().skip_while(|line| !holds(line));
    let line = lines.find_map(|line| line.strip_prefix("AnonHugePages:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[inline(never)]
async fn panics() {
    panic!("as it must");
}

fn code_is_on_huge_pages_if_the_program_is_linked_for_them() {
    if cfg!(not(target_os = "linux")) {
        skip("this kernel has none");
    }
    let expected = cfg!(all(feature = "huge-text", target_arch = "x86_64"))
        && capabilities() == "all"
        && kernel_has_them()
        && is_linked_for_it();
    println!("{expected}");
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        for _ in 0..2 {
            assert_eq!(zygote.capabilities().huge_text, expected);
            let huge = zygote.run_in_process(huge_kilobytes, ()).await.unwrap();
            assert_eq!(huge > 0, expected, "{huge} kB");
            // Names are still found for addresses.
            let error = zygote.run_in_process(panics, ()).await.unwrap_err();
            let Error::Panicked { report, .. } = &error else { panic!("{error:?}") };
            let names = report.frames();
            assert!(names.iter().any(|frame| frame.function.contains("huge_text::panics")), "{names:?}");
            // The next zygote has it from its ancestor.
            let pid = zygote.pid();
            send_signal(pid, libc::SIGKILL);
            eventually("another one serves", || zygote.pid() != pid).await;
        }
        // The program itself was left as it was.
        assert_eq!(huge_kilobytes().await, 0);
    });
}

/// What wrote to it, a probe of the kernel's for one, counts on finding it there.
fn code_that_was_patched_is_not_moved() {
    crate::hygiene::patch();
    let zygote = Zygote::builder().start().unwrap();
    multi_thread().block_on(async {
        assert!(!zygote.capabilities().huge_text);
        assert_eq!(zygote.run_in_process(async || 7, ()).await.unwrap(), 7);
    });
}
