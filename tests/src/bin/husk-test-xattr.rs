// SPDX-License-Identifier: Apache-2.0

//! Extended attributes for the suites: busybox has no program for them. Runs in a container.

use std::ffi::CString;
use std::io::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["set", path, name, value] => set(path, name, value),
        ["get", path, name] => get(path, name),
        ["list", path] => list(path),
        _ => Err("usage: husk-test-xattr set PATH NAME VALUE | get PATH NAME | list PATH".into()),
    };
    match done {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn set(path: &str, name: &str, value: &str) -> Result<String, String> {
    let (path, name) = (c(path), c(name));
    // SAFETY: all pointers are valid for the call, and the length is the value's.
    let done = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if done == 0 { Ok(String::new()) } else { Err(Error::last_os_error().to_string()) }
}

fn get(path: &str, name: &str) -> Result<String, String> {
    let (path, c_name) = (c(path), c(name));
    let mut value = vec![0u8; 4096];
    // SAFETY: all pointers are valid for the call, and the length is the buffer's.
    let len = unsafe {
        libc::getxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    match usize::try_from(len) {
        Ok(len) => Ok(format!("{}\n", String::from_utf8_lossy(&value[..len]))),
        Err(_) => match Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENODATA) => {
                Err(format!("no attribute {name}"))
            }
            error => Err(error.to_string()),
        },
    }
}

fn list(path: &str) -> Result<String, String> {
    let path = c(path);
    let mut names = vec![0u8; 4096];
    // SAFETY: both pointers are valid for the call, and the length is the buffer's.
    let len = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let len = usize::try_from(len).map_err(|_| Error::last_os_error().to_string())?;
    let names = String::from_utf8_lossy(&names[..len]).into_owned();
    Ok(names.split_terminator('\0').map(|name| format!("{name}\n")).collect())
}

fn c(text: &str) -> CString {
    CString::new(text).expect("an argument has no NUL")
}
