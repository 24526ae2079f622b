// Package iso makes installation media for hosts out of the installation image: it puts a kickstart file, the mode and the join token into space that the
// image has reserved for them, in place, and writes what a network start needs.
//
// The image itself is made from Debian packages by scripts/iso (rarely, with Debian's tools); filling it in needs no tools at all, so that an
// operator makes media anywhere shoalctl runs, in the time of a copy. Its signed boot loaders, its El Torito catalogue and its partition table
// stay as they are. It lies with the controller since controllers will hand out media too; what it shares with the installer is desired/kickstart and
// desired.HostMedium.
//
// A vendor's medium of the RHEL family takes the place of the image with OpenVendor and Vendor.Repack: what is on it stays, Anaconda does the work, and
// the kickstart is put into its words by controller/iso/anaconda. This is done by xorriso and mtools, which must be installed; what they wrote
// is looked at before it is put in place.
//
// It guarantees that the same image and the same request give the same bytes, that a kickstart which the installer would refuse is refused here,
// and that a file of the wanted name is either complete or not there. An ISO holds the join token:
// it is readable by its owner alone.
package iso
