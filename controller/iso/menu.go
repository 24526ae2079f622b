package iso

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Lines of boot menus that start a kernel with arguments, and those that say how long the menu waits.
var (
	appendLine    = regexp.MustCompile(`^(\s*append\s+)(.*)$`)
	linuxLine     = regexp.MustCompile(`^(\s*linux(?:efi|16)?\s+\S+\s+)(.*)$`)
	syslinuxWait  = regexp.MustCompile(`^\s*timeout\s`)
	grubWait      = regexp.MustCompile(`^\s*set\s+timeout=`)
	stage2ByLabel = regexp.MustCompile(`^inst\.(?:stage2|repo)=hd:LABEL=([^:\s]+)`)
)

// patchMenu puts arguments for the installer into every entry of a boot menu that installs, and sets how long it waits. It gives how many
// entries that were. Entries that only rescue, or start from the disk, stay as they are. label is the medium's, as udev writes it: where an
// entry names the medium itself, its own spelling is taken, since boot loaders differ in how they read a backslash.
func patchMenu(name, text, label string, args []string, seconds int) (string, int) {
	kernel, wait, says := linuxLine, grubWait, fmt.Sprintf("set timeout=%d", seconds)
	if strings.HasSuffix(name, "isolinux.cfg") {
		kernel, wait, says = appendLine, syslinuxWait, fmt.Sprintf("timeout %d", 10*max(seconds, 1))
	}
	lines := strings.Split(text, "\n")
	n, waits := 0, false
	for i, line := range lines {
		if wait.MatchString(line) {
			lines[i], waits = says, true
		}
		m := kernel.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		words := strings.Fields(m[2])
		if !slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, "inst.stage2=") || strings.HasPrefix(w, "inst.repo=") }) ||
			slices.Contains(words, "rescue") || slices.Contains(words, "inst.rescue") {
			continue
		}
		spelt := label
		for _, w := range words {
			if m := stage2ByLabel.FindStringSubmatch(w); m != nil {
				spelt = m[1]
			}
		}
		words = slices.DeleteFunc(words, func(w string) bool { return strings.HasPrefix(w, "inst.ks=") || strings.HasPrefix(w, "ks=") })
		words = append(words, "inst.ks=hd:LABEL="+spelt+":/ks.cfg")
		lines[i] = m[1] + strings.Join(append(words, args...), " ")
		n++
	}
	if !waits && n > 0 {
		lines = append([]string{says}, lines...)
	}
	return strings.Join(lines, "\n"), n
}

// udevLabel is a volume label as names below /dev/disk/by-label have it.
func udevLabel(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte("#+-.:=@_", c) >= 0 || c >= 0x80 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}
