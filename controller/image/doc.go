// Package image gets images into the installation and hands them to hosts.
//
// # What it guarantees
//
// While its controller leads, [Service.Run] downloads every image that is being added: over http and https, resumed
// after a break, or from a regular file of the controller that everybody may read. The content is hashed while it is
// read, compared with the checksum, and looked into: the format is what the content is, not what a name says. A qcow2
// image that names a backing file or an external data file is refused, since qemu would open whatever file of the host
// that names. What is good is committed as ready; what is not is taken out again in the same transaction that says in its
// task why, and leaves no file behind. A controller that dies in the middle goes on where it was, if the server can prove that
// the content is still the same, and starts over otherwise.
//
// Accounts other than admin have images downloaded from public addresses and from [Sources] only: the address is checked when it
// is connected to.
//
// [Service.Handler] serves ready images to whoever has a URL that [Service.URLs] has signed, with ranges.
//
// # Where files are
//
// In the data directory of the controller that added the image. The image's record lists the addresses of the
// controllers that have it (servers). A controller that takes over fetches what it lacks from those and adds itself to
// the list; until then agents get the URLs of the others. All controllers of an installation must have the same key,
// which therefore lies with the identity that they share.
//
// # What it leaves to others
//
// Who may add an image is decided by package api; hosts keep copies of their own (agent/volume) and check them by SHA-256.
package image
