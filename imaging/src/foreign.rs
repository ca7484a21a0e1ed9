//! What a file is that should have been a scan: people act faster on "a DICOM file" than on "a wrong magic number".

/// The start of a kind of file, where it stands, and what to call it.
const KINDS: &[(usize, &[u8], &str)] = &[
    (128, b"DICM", "it is a DICOM file"),
    (0, b"version https://git-lfs", "it is a Git LFS pointer, the scan itself was not fetched (git lfs pull)"),
    (0, b"/annex/objects", "it is a git-annex pointer, the scan itself was not fetched (git annex get)"),
    (0, b"\x1f\x8b", "it is compressed twice"),
    (0, b"NRRD", "it is an NRRD file"),
    (0, b"ObjectType", "it is a MetaImage header"),
    (0, b"PK\x03\x04", "it is a zip archive"),
    (0, b"BZh", "it is compressed with bzip2"),
    (0, b"\xfd7zXZ", "it is compressed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "it is compressed with zstd"),
    (0, b"\x89PNG", "it is a PNG picture"),
    (0, b"\x89HDF", "it is an HDF5 file (such as MINC 2)"),
    (0, b"<!DOCTYPE", "it is a web page, as a failed download leaves it"),
    (0, b"<html", "it is a web page, as a failed download leaves it"),
];

/// What the beginning of a file that is no NIfTI-1 shows it to be, when that is known.
pub(crate) fn kind_of(start: &[u8]) -> Option<&'static str> {
    if let Some((.., name)) = KINDS.iter().find(|(at, magic, _)| start.get(*at..at + magic.len()) == Some(*magic)) {
        return Some(name);
    }
    let size: [u8; 4] = *start.first_chunk()?;
    let size = [u32::from_le_bytes(size), u32::from_be_bytes(size)];
    if size.contains(&540) {
        return Some("it is NIfTI-2 (a header of 540 bytes), of which nothing is read here");
    }
    match start.get(344..348) {
        Some(b"ni1\0") if size.contains(&348) => Some("it is the header of a .hdr/.img pair"),
        Some(b"\0\0\0\0") if size.contains(&348) => Some("it is an Analyze 7.5 header"),
        _ => None,
    }
}
