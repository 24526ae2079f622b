// Package anaconda knows what the installers of the RHEL family, RHEL, AlmaLinux, Rocky Linux, CentOS and Oracle Linux 7 to 10, accept in a kickstart
// file, and puts a file that is written for Shoal's own installer into their words.
//
// The tables are those of pykickstart, the library that Anaconda itself reads kickstart files with (commit 435ebbef of
// github.com/pykickstart/pykickstart: its handlers RHEL7 to RHEL10 and what they check beyond the options). What `ksvalidator --version RHEL9` finds,
// Check finds: an error where the release stops, a note where it goes on but a word has lost its effect. A test compares the two wherever
// ksvalidator is installed, and with verdicts that it gave before where it is not.
//
// Differences, all on the strict side: abbreviated options and an unquoted # inside a word are refused; a thing that is defined twice is an
// error, where Anaconda warns and takes one of them; and what a newer pykickstart lets pass though the release's own does not know it.
// Whether the machine, or the packages on the medium, can fulfil the file is found by Anaconda only.
package anaconda
