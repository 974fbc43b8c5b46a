// SPDX-License-Identifier: Apache-2.0

//! Writes classic BPF. Jumps only go forward, so code is put together from parts that are
//! finished: each falls through at its end, or jumps to what follows it.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET,
    BPF_W, sock_filter,
};
use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Operator};

/// Where the parts of `struct seccomp_data` are.
pub const NUMBER: u32 = 0;
pub const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What is answered to a system call: the action of the first rule whose conditions hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub rules: Vec<Rule>,
    pub otherwise: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// At most one for each argument.
    pub conditions: Vec<Condition>,
    pub action: u32,
}

/// A comparison of an argument, as far as it is in the mask, with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub argument: usize,
    pub operator: Operator,
    pub mask: u64,
    pub value: u64,
}

impl From<&LinuxSeccompArg> for Condition {
    fn from(arg: &LinuxSeccompArg) -> Self {
        let (mask, value) = match arg.op() {
            Operator::ScmpCmpMaskedEq => (arg.value(), arg.value_two().unwrap_or(0)),
            _ => (u64::MAX, arg.value()),
        };
        Self { argument: arg.index(), operator: arg.op(), mask, value: value & mask }
    }
}

impl Verdict {
    pub fn always(action: u32) -> Self {
        Self { rules: Vec::new(), otherwise: action }
    }

    /// `wide` tells whether arguments have 64 bits; if not, the upper 32 are not looked at.
    fn code(&self, wide: bool) -> Vec<sock_filter> {
        let mut code = Vec::new();
        for rule in &self.rules {
            let mut body = vec![ret(rule.action)];
            for condition in &rule.conditions {
                let mut checked = check(condition, wide, body.len() as u8);
                checked.append(&mut body);
                body = checked;
            }
            code.append(&mut body);
        }
        code.push(ret(self.otherwise));
        code
    }
}

/// Finds the verdict for the number that is loaded. Each of `ranges` begins at its number
/// and ends where the next begins; there is at least one.
pub fn search(ranges: &[(u32, Verdict)], wide: bool) -> Vec<sock_filter> {
    if let [(_, verdict)] = ranges {
        return verdict.code(wide);
    }
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let start = above[0].0;
    let mut below = search(below, wide);
    let mut code = match u8::try_from(below.len()) {
        Ok(length) => vec![jump(BPF_JGE, start, length, 0)],
        Err(_) => vec![jump(BPF_JGE, start, 0, 1), skip(below.len() as u32)],
    };
    code.append(&mut below);
    code.extend(search(above, wide));
    code
}

/// Goes on behind this code if the condition holds; skips `fail` further instructions if not.
fn check(condition: &Condition, wide: bool, fail: u8) -> Vec<sock_filter> {
    let Condition { mask, value, .. } = *condition;
    let (test, holds) = match condition.operator {
        Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => (BPF_JEQ, true),
        Operator::ScmpCmpNe => (BPF_JEQ, false),
        Operator::ScmpCmpGt => (BPF_JGT, true),
        Operator::ScmpCmpLe => (BPF_JGT, false),
        Operator::ScmpCmpGe => (BPF_JGE, true),
        Operator::ScmpCmpLt => (BPF_JGE, false),
    };
    let (yes, no) = if holds { (0, fail) } else { (fail, 0) };
    let offset = ARGUMENTS + 8 * condition.argument as u32;
    let word = |offset: u32, mask: u32| {
        let and =
            (condition.mask != u64::MAX).then(|| instruction(BPF_ALU | BPF_AND | BPF_K, mask));
        std::iter::once(load(offset)).chain(and).collect::<Vec<_>>()
    };
    let mut low = word(offset, mask as u32);
    low.push(jump(test, value as u32, yes, no));
    if !wide {
        return low;
    }
    // The upper halves decide, unless they are equal.
    let length = low.len() as u8;
    let high = (value >> 32) as u32;
    let mut code = word(offset + 4, (mask >> 32) as u32);
    if test != BPF_JEQ {
        code.push(jump(BPF_JGT, high, length + 1 + yes, 0));
    }
    code.push(jump(BPF_JEQ, high, 0, length + no));
    code.append(&mut low);
    code
}

pub fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset)
}

pub fn ret(value: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, value)
}

pub fn jump(test: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { jt: yes, jf: no, ..instruction(BPF_JMP | test | BPF_K, value) }
}

pub fn skip(length: u32) -> sock_filter {
    instruction(BPF_JMP | BPF_JA, length)
}

fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}
