package plan_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"shoal/agent/metal/plan"
	"shoal/desired/kickstart"
)

var update = flag.Bool("update", false, "write the golden files anew")

func blank(name string, gib int64) plan.Disk {
	return plan.Disk{
		Name: name, Path: "/dev/" + name, Size: gib << 30, Model: "Model", Serial: "S-" + name,
		Links: []string{"/dev/disk/by-id/ata-S-" + name, "/dev/disk/by-path/pci-" + name},
	}
}

func full(d plan.Disk, c ...plan.Content) plan.Disk {
	d.Table, d.Content = "gpt", c
	return d
}

func machine(disks ...plan.Disk) plan.Machine {
	return plan.Machine{
		Disks: disks, Memory: 4096, Image: 1200,
		NICs:     []plan.NIC{{Name: "ens3", MAC: "52:54:00:00:00:03"}, {Name: "ens4", MAC: "52:54:00:00:00:04", Carrier: true}},
		Packages: []string{"chrony", "xfsprogs"}, Units: []string{"ssh.service", "chrony.service", "libvirtd.service"}, Locales: []string{"de_DE.UTF-8"}, Zones: []string{"Etc/UTC", "Europe/Berlin"},
	}
}

func parse(t interface {
	Helper()
	Fatal(...any)
}, text string,
) *kickstart.Kickstart {
	t.Helper()
	ks, err := kickstart.Parse(kickstart.Source{Name: "ks", Text: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return ks
}

// show writes a plan so that a person can judge it.
func show(p *plan.Plan) string {
	var b strings.Builder
	for _, s := range p.Summary {
		fmt.Fprintln(&b, "say", s)
	}
	for _, n := range p.Notes {
		fmt.Fprintln(&b, "note", n)
	}
	step := func(kind string, s plan.Step) {
		fmt.Fprintln(&b, kind, s.Command.String(), s.Nodes)
		if in := string(s.Command.Stdin); in != "" {
			fmt.Fprintln(&b, "    < "+strings.ReplaceAll(strings.TrimSpace(in), "\n", "\n    < "))
		}
	}
	for _, s := range p.Steps {
		step("run", s)
	}
	for _, m := range p.Mounts {
		fmt.Fprintln(&b, "mount", m.Type, m.Device, m.Path, m.Options)
	}
	fmt.Fprintf(&b, "loader %+v\n", p.Loader)
	for _, f := range p.Files {
		fmt.Fprintf(&b, "file %s %o %s\n", f.Path, f.Mode, f.Link)
		if f.Content != "" {
			fmt.Fprintln(&b, "    | "+strings.ReplaceAll(strings.TrimSpace(f.Content), "\n", "\n    | "))
		}
	}
	for _, s := range p.Inside {
		step("inside", s)
	}
	for _, s := range p.Finish {
		step("finish", s)
	}
	return b.String()
}

const plain = "rootpw --lock\npart / --size=3000 --grow\n"

// TestPlans compares whole plans.
func TestPlans(t *testing.T) {
	t.Parallel()
	old := full(blank("sda", 40), plan.Content{Path: "/dev/sda1", Type: "ext4", Label: "old"}, plan.Content{Path: "/dev/sda2", Type: "LVM2_member"})
	old.Holders = []plan.Holder{{Path: "/dev/mapper/vg-root", Kind: "lvm", Name: "vg-root"}}
	for name, test := range map[string]struct {
		text string
		m    plan.Machine
	}{
		"plain":    {plain, machine(blank("vda", 20))},
		"erased":   {plain + "clearpart --all --drives=sda\n", machine(old)},
		"autopart": {"rootpw --lock\nautopart --type=lvm\nignoredisk --only-use=nvme0n1\n", machine(blank("nvme0n1", 100), full(blank("sda", 900), plan.Content{Path: "/dev/sda1", Type: "xfs"}))},
		"raid": {`rootpw --iscrypted $6$a$b
user --name=ops --groups=wheel --password=secret
sshkey --username=ops "ssh-ed25519 AAAA ops"
lang de_DE.UTF-8
keyboard "de (nodeadkeys)"
timezone Europe/Berlin
timesource --ntp-server=10.0.0.1
network --device=bond0 --bondslaves=ens3,52:54:00:00:00:04 --bondopts=mode=802.3ad,miimon=100,lacp_rate=fast,xmit_hash_policy=layer3+4 --vlanid=120 --ip=10.20.0.11 --netmask=255.255.255.0 --gateway=10.20.0.1 --nameserver=10.20.0.2 --noipv6 --mtu=9000
network --device=br0 --bridgeslaves=bond0 --noipv4 --noipv6
network --hostname=kvm01.example
ignoredisk --only-use=disk/by-id/ata-S-sd[ab]
part raid.11 --size=1024 --ondisk=sda
part raid.12 --size=1024 --ondisk=sdb
part raid.21 --size=4000 --grow
part raid.22 --size=4000 --grow
raid /boot --level=1 --device=boot --fstype=ext4 raid.11 raid.12
raid pv.1 --level=1 --device=sys raid.21 raid.22
volgroup vg-sys pv.1
logvol / --vgname=vg-sys --name=root --size=6000 --fstype=xfs
logvol swap --vgname=vg-sys --name=swap --recommended
logvol /var/lib/libvirt --vgname=vg-sys --name=libvirt --size=1000 --grow --fsoptions=noatime
bootloader --append="intel_iommu=on" --timeout=1
firewall --enabled --service=ssh,vxlan --port=8000-8010:tcp --trust=br0
services --enabled=sshd,chronyd --disabled=libvirtd,kdump
`, machine(blank("sda", 40), blank("sdb", 50), blank("sdc", 900))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := plan.Make(parse(t, test.text), test.m, plan.Options{ID: "abc", Seed: "seed", Consoles: []string{"console=tty0", "console=ttyS0,115200"}})
			if err != nil {
				t.Fatal(err)
			}
			got := show(p)
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestRefusals: what must not be begun.
func TestRefusals(t *testing.T) {
	t.Parallel()
	data := full(blank("sda", 40), plan.Content{Path: "/dev/sda1", Type: "ext4", Label: "home"})
	raw := blank("sda", 40)
	raw.Content = []plan.Content{{Path: "/dev/sda", Type: "LVM2_member"}}
	medium := blank("sdb", 8)
	medium.InUse = "it is the installation medium"
	stick := blank("sdc", 8)
	stick.Removable = true
	shared := func(name string) plan.Disk {
		d := full(blank(name, 40), plan.Content{Path: "/dev/" + name + "1", Type: "LVM2_member"})
		d.Holders = []plan.Holder{{Path: "/dev/mapper/vg-a", Kind: "lvm", Name: "vg-a"}}
		return d
	}
	done := full(blank("sda", 40), plan.Content{Path: "/dev/sda1", Name: plan.Finished("abc")})
	const erase = "zerombr\nclearpart --all\n"
	for name, test := range map[string]struct {
		text string
		m    plan.Machine
		want string
	}{
		"data":                {plain, machine(data), "/dev/sda (40 GiB, Model, S-sda) holds data and the kickstart does not clear it: sda1: ext4 home; if it may all be lost, say so with clearpart --all --drives=sda"},
		"data, another clear": {plain + "ignoredisk --only-use=sda\nclearpart --all --drives=sdz\n", machine(data, blank("sdz", 1)), "holds data and the kickstart does not clear it"},
		"raw volume":          {plain + "clearpart --all\n", machine(raw), "holds something without a partition table: sda: LVM2_member; if it may all be lost, add zerombr"},
		"two disks":           {plain + erase, machine(blank("sda", 40), blank("sdb", 40)), "the machine has 2 disks and the kickstart names none: /dev/sda (40 GiB, Model, S-sda), /dev/sdb (40 GiB, Model, S-sdb); say which to use with ignoredisk --only-use="},
		"no such disk":        {plain + "ignoredisk --only-use=nvme0n1\n", machine(blank("sda", 40)), "ks:3: no disk is nvme0n1; the machine has /dev/sda (40 GiB, Model, S-sda)"},
		"no disk":             {plain, machine(), "the machine has no disk to install to"},
		"only the medium":     {plain, machine(medium, stick), "the machine has no disk to install to"},
		"the medium named":    {plain + erase + "ignoredisk --only-use=sdb\n", machine(medium), "/dev/sdb (8192 MiB, Model, S-sdb) can't be used: it is the installation medium"},
		"shared volume":       {plain + erase + "ignoredisk --only-use=sda\n", machine(shared("sda"), shared("sdb")), "can't be cleared: the lvm vg-a lies on /dev/sdb"},
		"already":             {plain + erase, machine(done), "was installed from this very medium already; take the medium out"},
		"too small":           {plain, machine(blank("sda", 2)), "ks:2: / of 3000 MiB does not fit: 1789 MiB are left (/dev/sda (2048 MiB, Model, S-sda))"},
		"root too small":      {"rootpw --lock\npart / --size=1000\n", machine(blank("sda", 40)), "ks:2: the root file system would have 1000 MiB, and the system needs 1900 MiB"},
		"volume too large":    {"rootpw --lock\npart pv.1 --size=4000\nvolgroup vg pv.1\nlogvol / --vgname=vg --name=r --size=5000\n", machine(blank("sda", 40)), "ks:4: / of 5000 MiB does not fit into the volume group vg: 3996 MiB are left of 3996"},
		"members on one disk": {"rootpw --lock\npart raid.1 --size=4000\npart raid.2 --size=4000\nraid / --level=1 --device=r raid.1 raid.2\n", machine(blank("sda", 40)), "ks:3: raid.2 of 4000 MiB does not fit: each member of an array needs a disk of its own"},
		"package":             {plain + "%packages\nchrony\nhttpd\n%end\n", machine(blank("sda", 40)), "ks:5: package httpd is not in this image"},
		"service":             {plain + "services --enabled=httpd\n", machine(blank("sda", 40)), "ks:3: the image has no service httpd"},
		"interface":           {plain + "network --device=eth0\n", machine(blank("sda", 40)), "ks:3: network: there is no interface eth0; the machine has ens3 (52:54:00:00:00:03, no cable), ens4 (52:54:00:00:00:04)"},
		"locale":              {plain + "lang fr_FR.UTF-8\n", machine(blank("sda", 40)), "lang: the image has no locale fr_FR.UTF-8"},
		"zone":                {plain + "timezone Mars/Base\n", machine(blank("sda", 40)), "timezone: there is no time zone Mars/Base"},
		"small xfs":           {plain + "part /srv --size=100 --fstype=xfs\n", machine(blank("sda", 40)), "/srv of 100 MiB is too small for xfs"},
		"bootif from a disk":  {plain + "network --device=bootif\n", machine(blank("sda", 40)), "the machine was not started from the network"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := plan.Make(parse(t, test.text), test.m, plan.Options{ID: "abc"})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %s", err, test.want)
			}
		})
	}
}

// TestUnfinishedIsStartedAgain: a power cut leaves a disk that no clearpart covers, and the next start must take it.
func TestUnfinishedIsStartedAgain(t *testing.T) {
	t.Parallel()
	d := full(blank("sda", 40), plan.Content{Path: "/dev/sda1", Name: plan.Unfinished}, plan.Content{Path: "/dev/sda2", Type: "vfat"}, plan.Content{Path: "/dev/sda3", Type: "ext4"})
	p, err := plan.Make(parse(t, plain), machine(d), plan.Options{ID: "abc"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(p.Summary, "\n"), "start an unfinished installation again") {
		t.Errorf("summary: %v", p.Summary)
	}
	d.Content[0].Name = plan.Finished("abc")
	if _, err := plan.Make(parse(t, plain+"clearpart --all\n"), machine(d), plan.Options{ID: "abc", Reinstall: true}); err != nil {
		t.Errorf("a new installation that was asked for: %v", err)
	}
}

// TestNeverTouchesOtherDisks: whatever the kickstart and the machine, no command and no mount of a plan names a disk that the kickstart does not
// allow, and no disk with content is written to unless clearpart covers it.
func TestNeverTouchesOtherDisks(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"sda", "sdb", "sdc", "nvme0n1"}
		var disks []plan.Disk
		for _, n := range names[:rapid.IntRange(1, 4).Draw(t, "disks")] {
			d := blank(n, rapid.Int64Range(1, 60).Draw(t, "gib"))
			if rapid.Bool().Draw(t, "full") {
				d = full(d, plan.Content{Path: d.Path + "1", Type: "ext4"})
			}
			disks = append(disks, d)
		}
		only := rapid.SliceOfDistinct(rapid.SampledFrom(names), func(s string) string { return s }).Draw(t, "only")
		drives := rapid.SliceOfDistinct(rapid.SampledFrom(names), func(s string) string { return s }).Draw(t, "drives")
		text := rapid.SampledFrom([]string{
			plain, "rootpw --lock\nautopart\n", "rootpw --lock\npart raid.1 --size=4000 --grow\npart raid.2 --size=4000\nraid / --level=1 --device=r raid.1 raid.2\n",
		}).Draw(t, "layout")
		if len(only) > 0 {
			text += "ignoredisk --only-use=" + strings.Join(only, ",") + "\n"
		}
		clears := len(drives) > 0
		if clears {
			text += "clearpart --all --drives=" + strings.Join(drives, ",") + "\n"
		}
		p, err := plan.Make(parse(t, text), machine(disks...), plan.Options{ID: "abc"})
		if err != nil {
			return
		}
		touched := show(&plan.Plan{Steps: p.Steps, Mounts: p.Mounts, Loader: p.Loader, Finish: p.Finish})
		for _, d := range disks {
			if !strings.Contains(touched, d.Path) {
				continue
			}
			named := func(list []string) bool { return strings.Contains(strings.Join(list, " "), d.Name) }
			switch {
			case len(only) > 0 && !named(only), len(only) == 0 && len(drives) > 0 && !named(drives), len(only)+len(drives) == 0 && len(disks) > 1:
				t.Fatalf("%s is touched though the kickstart does not name it:\n%s\n%s", d.Name, text, touched)
			case len(d.Content) > 0 && !named(drives):
				t.Fatalf("%s holds data and is touched:\n%s\n%s", d.Name, text, touched)
			}
		}
		// Partitions must fit the disk, or sfdisk would stop half way.
		for _, s := range p.Steps {
			if s.Command.Name != "sfdisk" {
				continue
			}
			sum := 2
			for line := range strings.SplitSeq(string(s.Command.Stdin), "\n") {
				var n int
				if _, err := fmt.Sscanf(line, "size=%dMiB", &n); err == nil {
					sum += n
				}
			}
			for _, d := range disks {
				if d.Path == s.Command.Args[len(s.Command.Args)-1] && int64(sum)<<20 > d.Size {
					t.Fatalf("%d MiB of partitions on %d bytes:\n%s", sum, d.Size, s.Command.Stdin)
				}
			}
		}
	})
}
