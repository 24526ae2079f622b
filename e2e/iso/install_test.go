package iso

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestBIOS installs a host with the flags alone, cuts the power in the middle, lets it begin anew, and leaves the medium in the drive afterwards: the host
// must come up from its disk and enrol itself at its controller, which is away at first.
func TestBIOS(t *testing.T) {
	need(t)
	c := startController(t)
	token := c.ctl(t, "host", "token", "create", "--cluster", "c1", "--ttl", "2h", "-q")
	iso := medium(t, "--mode", "compute", "--token-file", write(t, "token", token), "--hostname", "bios1", "--arg", "systemd.journald.forward_to_console=1")
	h := hardware{cd: iso, disks: []string{disk(t, 12)}}

	m := power(t, h)
	m.says(10*time.Minute, `unpacking the system: \d+ of`)
	m.off()
	// No --erase was given: what lies on the disk now is ours, and only therefore may be overwritten.
	m = power(t, h)
	if log := m.installs(); !strings.Contains(log, "start an unfinished installation again") {
		t.Errorf("the installer does not see what the power cut left:\n%s", tail(log))
	}
	// Without a way to the controller the agent asks and asks, and keeps its token.
	m = power(t, h)
	log := m.says(10*time.Minute, agentAsks, "Shoal installer")
	if strings.Contains(log, "Shoal installer") {
		t.Fatalf("the medium in the drive installs again:\n%s", tail(log))
	}
	if !strings.Contains(log, "Hostname set to <bios1>") {
		t.Errorf("the host has another name:\n%s", tail(log))
	}
	m.off()
	h.way = c.way()
	power(t, h)
	c.connects(t, "bios1", 10*time.Minute)
}

// expert is a kickstart with much of what the language has. What the installed system is like it tells itself on the console, at its first start.
const expert = `lang de_DE.UTF-8
keyboard de
timezone Europe/Berlin --utc
rootpw --lock
group --name=storage --gid=900
user --name=ops --groups=wheel,storage --uid=1500 --password=secret
sshkey --username=ops "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtest ops@corp"
network --device=bond0 --bondslaves=52:54:00:00:00:01,52:54:00:00:00:02 --bondopts=mode=active-backup,miimon=100 --bootproto=static --ip=10.0.2.20 --netmask=255.255.255.0 --gateway=10.0.2.2 --nameserver=10.0.2.3 --noipv6
network --device=bond0 --vlanid=42 --ip=192.168.42.5 --netmask=24 --noipv6
network --hostname=uefi1.example
%include /tmp/disks.ks
part raid.11 --size=512 --ondisk=disk/by-id/virtio-DISK0
part raid.12 --size=512 --ondisk=disk/by-id/virtio-DISK1
part raid.21 --size=3000 --grow --ondisk=disk/by-id/virtio-DISK0
part raid.22 --size=3000 --grow --ondisk=disk/by-id/virtio-DISK1
raid /boot --level=1 --device=boot --fstype=ext4 raid.11 raid.12
raid pv.1 --level=1 --device=sys raid.21 raid.22
volgroup vg-sys pv.1
logvol / --vgname=vg-sys --name=root --size=2500 --grow --fstype=xfs
logvol swap --vgname=vg-sys --name=swap --size=256
bootloader --append="quiet"
firewall --enabled --service=ssh --port=8480:tcp
services --enabled=sshd,chronyd --disabled=libvirtd
%packages
chrony
%end
reboot
%pre --erroronfail
echo "ignoredisk --only-use=disk/by-id/virtio-DISK[01]" >/tmp/disks.ks
%end
%post --nochroot --erroronfail
test -f /run/install/repo/shoal/sums
echo nochroot >/mnt/sysroot/etc/evidence
%end
%post --erroronfail --interpreter=/bin/bash --log=/root/post.log
cat >/etc/systemd/system/evidence.service <<X
[Unit]
After=network-online.target systemd-user-sessions.service ssh.service
Wants=network-online.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/evidence
[Install]
WantedBy=multi-user.target
X
cat >/usr/local/sbin/evidence <<'X'
#!/bin/bash
{
echo "hostname=$(hostname) zone=$(readlink /etc/localtime) lang=$(. /etc/default/locale; echo $LANG) locale=$(LC_ALL=de_DE.UTF-8 date -d 2026-03-01 +%B)"
echo "groups=$(id -Gn ops) uid=$(id -u ops) key=$(cut -d' ' -f1 /home/ops/.ssh/authorized_keys)"
echo "bond=$(ip -br -4 addr show bond0 | awk '{print $3}') vlan=$(ip -br -4 addr show bond0.42 | awk '{print $3}') slaves=$(cat /sys/class/net/bond0/bonding/slaves | wc -w) mode=$(cat /sys/class/net/bond0/bonding/mode)"
echo "root=$(findmnt -no SOURCE,FSTYPE / | tr -s ' ') boot=$(findmnt -no SOURCE /boot) arrays=$(grep -c '^md.*raid1' /proc/mdstat) swap=$(swapon --show --noheadings | wc -l)"
echo "ssh=$(systemctl is-active ssh) libvirtd=$(systemctl is-enabled libvirtd.service) filter=$(nft list table inet shoal_host | grep -c 'dport') evidence=$(cat /etc/evidence)"
echo "secure=$(od -An -tu1 -j4 -N1 /sys/firmware/efi/efivars/SecureBoot-* | tr -d ' ') esp=$(findmnt -no FSTYPE /boot/efi) failed=$(systemctl --failed --no-legend | awk '{print $2}' | tr '\n' ' ') machine-id=$(wc -c </etc/machine-id)"
echo EVIDENCE-END
} | sed 's/^/EVIDENCE /' >/dev/ttyS0
X
chmod 755 /usr/local/sbin/evidence
systemctl enable evidence.service
%end
`

// TestUEFI installs by a kickstart onto a mirror with volumes on it, with Secure Boot, and asks the installed system what it is.
func TestUEFI(t *testing.T) {
	need(t)
	iso := medium(t, "--mode", "expert", "--kickstart", write(t, "my.ks", expert))
	h := hardware{uefi: vars(t), cd: iso, disks: []string{disk(t, 5), disk(t, 5)}, nics: 2}
	power(t, h).installs()
	h.cd = ""
	m := power(t, h)
	log := control.ReplaceAllString(m.says(10*time.Minute, "EVIDENCE-END", "emergency mode"), "")
	m.off()
	for _, want := range []string{
		"hostname=uefi1.example zone=/usr/share/zoneinfo/Europe/Berlin lang=de_DE.UTF-8 locale=März", "groups=ops wheel storage uid=1500 key=ssh-ed25519",
		"bond=10.0.2.20/24 vlan=192.168.42.5/24 slaves=2 mode=active-backup 1", "root=/dev/mapper/vg--sys-root xfs boot=/dev/md", "arrays=2 swap=1",
		"ssh=active libvirtd=disabled filter=2 evidence=nochroot", "secure=1 esp=vfat failed= machine-id=33",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the installed system does not say %q:\n%s", want, evidence(log))
		}
	}
	// Either half of the mirror is enough to start from.
	h.disks = h.disks[1:]
	h.uefi = vars(t)
	if log := power(t, h).says(12*time.Minute, "EVIDENCE-END", "emergency mode"); strings.Contains(log, "emergency mode") {
		t.Errorf("with the first disk gone the machine does not come up:\n%s", tail(log))
	}
}

func evidence(log string) string {
	var lines []string
	for line := range strings.SplitSeq(log, "\n") {
		if strings.Contains(line, "EVIDENCE") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// TestDamagedMedium: one wrong byte in half a gigabyte is found before anything is written.
func TestDamagedMedium(t *testing.T) {
	need(t)
	iso := medium(t, "--mode", "expert")
	f, err := os.OpenFile(iso, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 200<<20); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, 200<<20); err != nil {
		t.Fatal(err)
	}
	d := disk(t, 12)
	before := digest(t, d)
	power(t, hardware{cd: iso, disks: []string{d}}).refuses("the medium is damaged: rootfs.squashfs is not what was written")
	if digest(t, d) != before {
		t.Error("the disk was written to")
	}
}

// TestDiskWithData: what a disk holds is safe from a medium that was not told to erase, and a disk that is too small is said to be.
func TestDiskWithData(t *testing.T) {
	need(t)
	iso := medium(t, "--mode", "expert", "--disk", "serial=DISK0")
	full := disk(t, 12)
	partition(t, full)
	before := digest(t, full)
	power(t, hardware{cd: iso, disks: []string{full, disk(t, 12)}}).refuses("holds data and the kickstart does not clear it: vda1: ext4 precious")
	if digest(t, full) != before {
		t.Error("the disk was written to")
	}
	small := disk(t, 3)
	before = digest(t, small)
	power(t, hardware{cd: iso, disks: []string{small}}).refuses("pv.01 of 6144 MiB does not fit")
	if digest(t, small) != before {
		t.Error("the disk was written to")
	}
}

// partition makes a disk with one ext4 file system.
func partition(t *testing.T, path string) {
	t.Helper()
	script := `printf 'label: gpt\nsize=64MiB\n' | /sbin/sfdisk --quiet "$1"
truncate -s 64M "$1.fs"; /sbin/mkfs.ext4 -q -F -L precious "$1.fs"; dd if="$1.fs" of="$1" bs=1M seek=1 conv=notrunc status=none; rm "$1.fs"`
	if out, err := exec.Command("bash", "-ec", script, "bash", path).CombinedOutput(); err != nil {
		t.Fatalf("make a disk with data: %v\n%s", err, out)
	}
}

// digest is the checksum of a disk's first GiB, where all that is written first comes to lie, and of its end.
func digest(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, 1<<30)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(-1<<20, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// TestPXE installs the same over the network: iPXE loads kernel, initramfs and all of the medium by TFTP.
func TestPXE(t *testing.T) {
	need(t)
	dir := t.TempDir()
	shoalctl(t, "--mode", "expert", "--pxe", dir, "--nic", "52:54:00:00:00:09")
	h := hardware{disks: []string{disk(t, 12)}, more: []string{
		"-netdev", "user,id=pxe,restrict=on,tftp=" + dir + ",bootfile=boot.ipxe", "-device", "virtio-net-pci,netdev=pxe,mac=52:54:00:00:00:09,bootindex=1", "-m", "3072",
	}}
	power(t, h).installs()
}

// TestReproducible: the same request gives the same bytes.
func TestReproducible(t *testing.T) {
	need(t)
	var all [2][]byte
	for i := range all {
		b, err := os.ReadFile(medium(t, "--mode", "compute", "--token-file", write(t, "token", token()), "--net", "10.0.0.5/24"))
		if err != nil {
			t.Fatal(err)
		}
		all[i] = b
	}
	if !bytes.Equal(all[0], all[1]) {
		t.Error("the same request gives other bytes")
	}
}
