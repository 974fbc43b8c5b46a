// SPDX-License-Identifier: Apache-2.0

//! Who may do what: modes, owners, umask, set-ID bits, sticky and set-group-ID directories.

use std::fs::File;
use std::io::Write;

use rustix::fs::{Access, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::calls::*;
use super::process::{ALICE, BOB, CAP_FSETID, User, as_user, has_capability};
use super::{Case, Outcome};

pub const CASES: &[Case] = &[
    ("chmod_sets_all_bits", chmod_sets_all_bits),
    ("chmod_follows_links_and_is_the_owners", chmod_follows_links_and_is_the_owners),
    ("chmod_by_another_group_drops_set_group_id", chmod_by_another_group_drops_set_group_id),
    ("chown_sets_owner_and_group", chown_sets_owner_and_group),
    ("chown_clears_set_id_bits", chown_clears_set_id_bits),
    ("chown_by_users_is_limited", chown_by_users_is_limited),
    ("a_write_clears_set_id_bits", a_write_clears_set_id_bits),
    ("a_write_of_root_keeps_set_id_bits", a_write_of_root_keeps_set_id_bits),
    ("truncation_clears_set_id_bits", truncation_clears_set_id_bits),
    ("allocation_and_copies_clear_set_id_bits", allocation_and_copies_clear_set_id_bits),
    ("umask_applies_to_all_kinds", umask_applies_to_all_kinds),
    ("modes_are_obeyed", modes_are_obeyed),
    ("groups_count", groups_count),
    ("directories_need_search_and_write", directories_need_search_and_write),
    ("sticky_directories_protect_files", sticky_directories_protect_files),
    ("set_group_id_directories_hand_on_the_group", set_group_id_directories_hand_on_the_group),
    ("access_asks_for_the_real_user", access_asks_for_the_real_user),
    ("root_passes_modes_but_does_not_execute", root_passes_modes_but_does_not_execute),
    ("new_files_belong_to_their_maker", new_files_belong_to_their_maker),
    ("an_open_file_outlives_its_permissions", an_open_file_outlives_its_permissions),
];

fn chmod_sets_all_bits() -> Outcome {
    create("file")?;
    mkdir("dir", 0o755)?;
    for name in ["file", "dir"] {
        for bits in [0o000, 0o111, 0o644, 0o755, 0o1777, 0o2755, 0o4755, 0o7777] {
            chmod(name, bits)?;
            same("mode", mode(name)?, bits)?;
        }
    }
    let file = open("file", OFlags::RDONLY)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o640))?;
    same("mode after fchmod", mode("file")?, 0o640)?;
    let before = ctime(&stat("file")?);
    chmod("file", 0o600)?;
    holds("chmod moves ctime on", ctime(&stat("file")?) >= before)?;
    refused(chmod("none", 0o600), Errno::NOENT)?;
    refused(chmod("file/none", 0o600), Errno::NOTDIR)
}

fn chmod_follows_links_and_is_the_owners() -> Outcome {
    create("file")?;
    chown("file", Some(ALICE.id), Some(ALICE.id))?;
    symlink("file", "link")?;
    chmod("link", 0o604)?;
    same("mode of the target", mode("file")?, 0o604)?;
    same("mode of the link", mode("link")?, 0o777)?;
    as_user(ALICE, || Ok(chmod("file", 0o600)?))?;
    as_user(BOB, || refused(chmod("file", 0o777), Errno::PERM))?;
    same("mode", mode("file")?, 0o600)
}

fn chmod_by_another_group_drops_set_group_id() -> Outcome {
    create("file")?;
    chown("file", Some(ALICE.id), Some(2000))?;
    as_user(ALICE, || Ok(chmod("file", 0o2755)?))?;
    same("mode set by one outside the group", mode("file")?, 0o755)?;
    as_user(User { groups: &[2000], ..ALICE }, || Ok(chmod("file", 0o2755)?))?;
    same("mode set by one of the group", mode("file")?, 0o2755)
}

fn chown_sets_owner_and_group() -> Outcome {
    create("file")?;
    mkdir("dir", 0o755)?;
    symlink("file", "link")?;
    for name in ["file", "dir", "link"] {
        chown(name, Some(12), Some(34))?;
        same("owner", owner(name)?, (12, 34))?;
        chown(name, None, Some(56))?;
        chown(name, Some(78), None)?;
        chown(name, None, None)?;
        same("owner", owner(name)?, (78, 56))?;
        chown(name, Some(4_000_000_000), Some(65534))?;
        same("large owner", owner(name)?, (4_000_000_000, 65534))?;
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(5), rustix::fs::Gid::from_raw(6));
    rustix::fs::chownat(CWD, "link", Some(uid), Some(gid), AtFlags::empty())?;
    same("owner of the link's target", owner("file")?, (5, 6))?;
    same("owner of the link", owner("link")?, (4_000_000_000, 65534))
}

fn chown_clears_set_id_bits() -> Outcome {
    create("file")?;
    for (before, after) in [(0o6755, 0o755), (0o6744, 0o2744), (0o4711, 0o711)] {
        chmod("file", before)?;
        chown("file", Some(10), Some(10))?;
        same("mode after chown", mode("file")?, after)?;
    }
    mkdir("dir", 0o755)?;
    chmod("dir", 0o6755)?;
    chown("dir", Some(10), Some(10))?;
    same("mode of a directory after chown", mode("dir")?, 0o6755)
}

fn chown_by_users_is_limited() -> Outcome {
    create("file")?;
    chown("file", Some(ALICE.id), Some(ALICE.id))?;
    let member = User { groups: &[2000], ..ALICE };
    as_user(member, || {
        refused(chown("file", Some(BOB.id), None), Errno::PERM)?;
        refused(chown("file", None, Some(2001)), Errno::PERM)?;
        chown("file", None, Some(2000))?;
        same("owner", owner("file")?, (ALICE.id, 2000))
    })?;
    as_user(BOB, || refused(chown("file", None, Some(BOB.id)), Errno::PERM))
}

fn a_write_clears_set_id_bits() -> Outcome {
    create("file")?;
    for (before, after) in [(0o6777, 0o777), (0o4777, 0o777), (0o2777, 0o777)] {
        chmod("file", before)?;
        // A program may have the file open already when the bits are set.
        as_user(BOB, || Ok(open("file", OFlags::WRONLY)?.write_all(b"x")?))?;
        same("mode after a write", mode("file")?, after)?;
    }
    Ok(())
}

fn a_write_of_root_keeps_set_id_bits() -> Outcome {
    if !has_capability(CAP_FSETID)? {
        return skip("needs CAP_FSETID");
    }
    let mut file = create("file")?;
    chmod("file", 0o6755)?;
    file.write_all(b"x")?;
    rustix::fs::ftruncate(&file, 0)?;
    same("mode", mode("file")?, 0o6755)
}

fn truncation_clears_set_id_bits() -> Outcome {
    fill("file", b"content")?;
    chmod("file", 0o6777)?;
    as_user(BOB, || Ok(open("file", OFlags::WRONLY)?.set_len(3)?))?;
    same("mode after ftruncate", mode("file")?, 0o777)?;
    chmod("file", 0o6777)?;
    as_user(BOB, || Ok(open("file", OFlags::WRONLY | OFlags::TRUNC).map(drop)?))?;
    same("mode after O_TRUNC", mode("file")?, 0o777)
}

fn allocation_and_copies_clear_set_id_bits() -> Outcome {
    fill("file", b"content")?;
    chmod("file", 0o6777)?;
    as_user(BOB, || {
        let file = open("file", OFlags::RDWR)?;
        Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 100)?)
    })?;
    same("mode after fallocate", mode("file")?, 0o777)?;
    fill("source", b"content")?;
    chmod("file", 0o6777)?;
    as_user(BOB, || {
        let (source, file) = (open("source", OFlags::RDONLY)?, open("file", OFlags::WRONLY)?);
        same("bytes", rustix::fs::copy_file_range(&source, None, &file, None, 7)?, 7)
    })?;
    same("mode after copy_file_range", mode("file")?, 0o777)
}

fn umask_applies_to_all_kinds() -> Outcome {
    let make = |prefix: &str| -> Outcome<[u32; 4]> {
        let name = |kind| format!("{prefix}-{kind}");
        open_mode(&name("file"), OFlags::CREATE | OFlags::RDWR, 0o666)?;
        mkdir(&name("dir"), 0o777)?;
        mknod(&name("fifo"), FileType::Fifo, 0o666, 0)?;
        mknod(&name("node"), FileType::RegularFile, 0o666, 0)?;
        Ok([mode(&name("file"))?, mode(&name("dir"))?, mode(&name("fifo"))?, mode(&name("node"))?])
    };
    for (mask, file, dir) in [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o666, 0o777)] {
        rustix::process::umask(Mode::from_raw_mode(mask));
        same("modes", make(&format!("{mask:o}"))?, [file, dir, file, file])?;
    }
    Ok(())
}

fn modes_are_obeyed() -> Outcome {
    let (read, write) = (OFlags::RDONLY, OFlags::WRONLY);
    create("file")?;
    chown("file", Some(ALICE.id), Some(2000))?;
    let member = User { groups: &[2000], ..BOB };
    let stranger = User { id: 1003, groups: &[] };
    for (bits, user) in [(0o400, ALICE), (0o040, member), (0o004, stranger)] {
        chmod("file", bits)?;
        as_user(user, || {
            open("file", read)?;
            refused(open("file", write), Errno::ACCESS)?;
            refused(open("file", OFlags::RDWR), Errno::ACCESS)
        })?;
        // The first class that fits decides, not the widest.
        chmod("file", !bits & 0o666)?;
        as_user(user, || refused(open("file", read), Errno::ACCESS))?;
    }
    chmod("file", 0o222)?;
    as_user(stranger, || {
        open("file", write)?;
        refused(open("file", read), Errno::ACCESS)?;
        refused(open("file", write | OFlags::NOATIME), Errno::PERM)
    })
}

fn groups_count() -> Outcome {
    mkdir("dir", 0o755)?;
    chown("dir", Some(0), Some(3000))?;
    chmod("dir", 0o770)?;
    as_user(User { groups: &[2999, 3000], ..ALICE }, || {
        create("dir/file")?;
        mkdir("dir/sub", 0o700)?;
        symlink("anywhere", "dir/link")?;
        mknod("dir/fifo", FileType::Fifo, 0o600, 0)?;
        rename("dir/file", "dir/moved")?;
        link("dir/moved", "dir/hard")?;
        same("owner", owner("dir/moved")?, (ALICE.id, ALICE.id))
    })?;
    as_user(BOB, || {
        refused(create("dir/other"), Errno::ACCESS)?;
        refused(stat("dir/moved"), Errno::ACCESS)
    })
}

fn directories_need_search_and_write() -> Outcome {
    mkdir("dir", 0o755)?;
    fill("dir/file", b"x")?;
    chown("dir", Some(ALICE.id), None)?;
    chmod("dir", 0o644)?;
    as_user(BOB, || {
        refused(stat("dir/file"), Errno::ACCESS)?;
        same("names", list("dir")?, vec!["file".to_owned()])
    })?;
    chmod("dir", 0o711)?;
    as_user(BOB, || {
        open("dir/file", OFlags::RDONLY)?;
        refused(open("dir", OFlags::RDONLY), Errno::ACCESS)?;
        refused(unlink("dir/file"), Errno::ACCESS)?;
        refused(rename("dir/file", "dir/other"), Errno::ACCESS)?;
        refused(mkdir("dir/sub", 0o755), Errno::ACCESS)?;
        refused(symlink("x", "dir/link"), Errno::ACCESS)?;
        refused(mknod("dir/fifo", FileType::Fifo, 0o644, 0), Errno::ACCESS)
    })?;
    chmod("dir", 0o733)?;
    as_user(BOB, || Ok(unlink("dir/file")?))
}

fn sticky_directories_protect_files() -> Outcome {
    mkdir("dir", 0o755)?;
    chmod("dir", 0o1777)?;
    as_user(ALICE, || {
        create("dir/file")?;
        chmod("dir/file", 0o666)?;
        Ok(mkdir("dir/sub", 0o777)?)
    })?;
    chmod("dir/sub", 0o777)?;
    as_user(BOB, || {
        create("dir/mine")?;
        refused(unlink("dir/file"), Errno::PERM)?;
        refused(rmdir("dir/sub"), Errno::PERM)?;
        refused(rename("dir/file", "dir/other"), Errno::PERM)?;
        refused(rename("dir/mine", "dir/file"), Errno::PERM)?;
        rename("dir/mine", "dir/still-mine")?;
        Ok(unlink("dir/still-mine")?)
    })?;
    as_user(ALICE, || {
        unlink("dir/file")?;
        Ok(rmdir("dir/sub")?)
    })
}

fn set_group_id_directories_hand_on_the_group() -> Outcome {
    mkdir("dir", 0o755)?;
    chown("dir", Some(0), Some(2000))?;
    chmod("dir", 0o2777)?;
    as_user(ALICE, || {
        rustix::process::umask(Mode::empty());
        open_mode("dir/file", OFlags::CREATE | OFlags::WRONLY, 0o2775)?;
        // One who is not in the group cannot make a program of the group.
        same("mode", mode("dir/file")?, 0o775)?;
        mkdir("dir/sub", 0o755)?;
        same("mode of a directory", mode("dir/sub")?, 0o2755)?;
        symlink("x", "dir/link")?;
        mknod("dir/fifo", FileType::Fifo, 0o644, 0)?;
        for name in ["dir/file", "dir/sub", "dir/link", "dir/fifo"] {
            same(name, owner(name)?, (ALICE.id, 2000))?;
        }
        Ok(())
    })
}

fn access_asks_for_the_real_user() -> Outcome {
    create("file")?;
    chown("file", Some(ALICE.id), Some(ALICE.id))?;
    chmod("file", 0o640)?;
    let access = |wanted| rustix::fs::accessat(CWD, "file", wanted, AtFlags::empty());
    as_user(ALICE, || {
        access(Access::READ_OK | Access::WRITE_OK)?;
        refused(access(Access::EXEC_OK), Errno::ACCESS)
    })?;
    as_user(BOB, || {
        access(Access::EXISTS)?;
        refused(access(Access::READ_OK), Errno::ACCESS)
    })
}

fn root_passes_modes_but_does_not_execute() -> Outcome {
    create("file")?;
    chmod("file", 0o000)?;
    open("file", OFlags::RDWR)?;
    let executes = || rustix::fs::accessat(CWD, "file", Access::EXEC_OK, AtFlags::empty());
    refused(executes(), Errno::ACCESS)?;
    chmod("file", 0o001)?;
    Ok(executes()?)
}

fn new_files_belong_to_their_maker() -> Outcome {
    mkdir("dir", 0o777)?;
    chmod("dir", 0o777)?;
    as_user(ALICE, || {
        create("dir/file")?;
        mkdir("dir/sub", 0o755)?;
        symlink("file", "dir/link")?;
        mknod("dir/fifo", FileType::Fifo, 0o644, 0)?;
        mknod("dir/socket", FileType::Socket, 0o644, 0)?;
        link("dir/file", "dir/hard")?;
        for name in list("dir")? {
            same(&name, owner(&format!("dir/{name}"))?, (ALICE.id, ALICE.id))?;
        }
        Ok(())
    })
}

fn an_open_file_outlives_its_permissions() -> Outcome {
    fill("file", b"content")?;
    chown("file", Some(ALICE.id), Some(ALICE.id))?;
    as_user(ALICE, || {
        let file: File = open("file", OFlags::RDWR)?;
        chmod("file", 0)?;
        refused(open("file", OFlags::RDONLY), Errno::ACCESS)?;
        same("content", std::io::read_to_string(&file)?, "content".to_owned())?;
        (&file).write_all(b" more")?;
        file.set_len(3)?;
        file.sync_all()?;
        same("size", stat("file")?.st_size, 3)
    })
}
