package domain

import (
	"errors"
	"strings"

	"shoal/agent/engine"
	"shoal/desired"
)

// conflict is an error about a domain of that name or UUID which is not ours.
func conflict(err error) error {
	return engine.Fault(desired.CodeConflict, "rename or undefine the foreign domain on the host", err)
}

// causes finds the fault behind libvirt's and QEMU's texts, which is all they give.
func causes() []struct {
	text string
	code desired.Code
	// remedy replaces the code's where it would mislead.
	remedy string
} {
	return []struct {
		text   string
		code   desired.Code
		remedy string
	}{
		{"No space left on device", desired.CodeNoSpace, ""},
		{"Cannot allocate memory", desired.CodeLibvirt, "free memory on the host, or start the VM elsewhere"},
		{"cannot set up guest memory", desired.CodeLibvirt, "free memory on the host, or start the VM elsewhere"},
		{`Failed to get "`, desired.CodeInUse, "find what else has the disk open; a VM must not run on two hosts"},
		{"Is another process using the image", desired.CodeInUse, "find what else has the disk open; a VM must not run on two hosts"},
		{"Read-only file system", desired.CodeReadOnly, ""},
		{"Failed to terminate process", desired.CodeStorageUnreachable, ""},
		{"Stale file handle", desired.CodeStorageUnreachable, ""},
		{"Input/output error", desired.CodeStorageUnreachable, ""},
		{"Cannot get interface MTU", desired.CodeMissing, "the bridge is missing; look at the network's item on this host"},
		{"No such file or directory", desired.CodeMissing, ""},
		{"No such device", desired.CodeMissing, ""},
	}
}

// fault gives an error that carries none the code a user can act on.
func (k *Kind) fault(err error) error {
	var f *desired.Fault
	if err == nil || errors.As(err, &f) || engine.IsBusy(err) {
		return err
	}
	switch {
	case errors.Is(err, ErrUnreachable):
		return engine.Fault(desired.CodeLibvirt, "check that libvirtd runs on the host", err)
	case errors.Is(err, ErrBusy):
		return engine.Fault(desired.CodeTimeout, "", err)
	}
	for _, c := range causes() {
		if strings.Contains(err.Error(), c.text) {
			return engine.Fault(c.code, c.remedy, err)
		}
	}
	return engine.Fault(desired.CodeLibvirt, "", err)
}

// isUnplugging recognises QEMU's answer to a second request to unplug a device.
func isUnplugging(err error) bool {
	return strings.Contains(err.Error(), "in the process of unplug")
}
