// SPDX-License-Identifier: Apache-2.0

//! A file behind a loop device, for mounts with the option `loop`. The device belongs to
//! its mount: the kernel lets go of the file when the last user of the device has, so
//! nothing is left after an unmount, nor after a crash.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext};

// linux/loop.h. LOOP_CONFIGURE came with Linux 5.8.
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Tries against others who take the same free device.
const ATTEMPTS: usize = 64;

/// struct loop_info64.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// struct loop_config.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A loop device; it goes when this is dropped and nothing is mounted from it.
#[derive(Debug)]
pub struct LoopDevice {
    pub path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// Puts the file behind a free device.
    pub fn attach(source: &Path, read_only: bool) -> Result<LoopDevice, Error> {
        let what = || format!("cannot set up a loop device for {}", source.display());
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(source)
            .map_err(|error| Error::invalid(format!("{}: {error}", what())))?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
        let control = control
            .context(|| format!("{}: /dev/loop-control (is the module loop loaded?)", what()))?;
        for _ in 0..ATTEMPTS {
            // SAFETY: this request takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error()).context(what);
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(!read_only).open(&path);
            let device = device.context(|| format!("{}: {}", what(), path.display()))?;
            match configure(device.as_raw_fd(), &file, read_only) {
                Ok(()) => return Ok(LoopDevice { path, _open: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error).context(what),
            }
        }
        Err(Error::unavailable(format!("{}: others took every free one", what())))
    }
}

fn configure(device: RawFd, file: &File, read_only: bool) -> io::Result<()> {
    // SAFETY: all of the structure is numbers, which may be 0.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    // SAFETY: the structure is the one of this request, and outlives the call.
    match unsafe { libc::ioctl(device, LOOP_CONFIGURE, &config) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
fn is_behind_a_device(file: &Path) -> bool {
    let devices = std::fs::read_dir("/sys/block").expect("sysfs").flatten();
    let mut backing = devices.map(|device| device.path().join("loop/backing_file"));
    backing.any(|path| {
        std::fs::read_to_string(path).is_ok_and(|path| Path::new(path.trim_end()) == file)
    })
}

/// Whether no device has the file; the kernel takes a moment.
#[cfg(test)]
pub fn is_let_go(file: &Path) -> bool {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while is_behind_a_device(file) && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    !is_behind_a_device(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!((size_of::<LoopInfo>(), size_of::<LoopConfig>()), (232, 304));
    }

    #[test]
    fn a_file_is_behind_a_device_until_it_is_dropped() {
        let dir = tempfile::tempdir().expect("directory");
        let source = dir.path().join("disk");
        fs::write(&source, vec![7; 1 << 16]).expect("file");
        let device = match LoopDevice::attach(&source, true) {
            Ok(device) => device,
            // A machine without loop devices, or without the right to them.
            Err(error) => return println!("not run: {error}"),
        };
        assert_eq!(fs::read(&device.path).expect("read"), vec![7; 1 << 16]);
        assert!(is_behind_a_device(&source));
        drop(device);
        assert!(is_let_go(&source));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = LoopDevice::attach(Path::new("/nonexistent/disk"), true).expect_err("missing");
        assert!(error.message.contains("/nonexistent/disk"), "{error}");
        assert_eq!(error.code, crate::Code::InvalidArgument);
    }
}
