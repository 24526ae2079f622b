// Package kickstart reads kickstart files: what a bare machine must become, in the language of Red Hat's Anaconda. It is the contract
// between who builds an installation medium (controller/iso) and the installer that runs from it (agent/metal); both
// check a file by the same rules, so what a build accepts the installer accepts.
//
// It guarantees that a directive, option or section that Shoal's installer does not carry out is an error with file and line, unless
// leaving it out can do no harm; then it is a Note. All errors of a file are found at once. Parse reads no file by
// itself, runs nothing and never panics. Whether the machine at hand can become what the file says is the installer's question.
//
// The syntax is that of the Anaconda documentation ("Kickstart commands and options reference") and, where that is silent, of pykickstart.
// Differences, all on the strict side: an unquoted # inside a word is refused, since pykickstart would cut the word off there without a
// word (think of passwords), and abbreviated options are refused.
package kickstart
