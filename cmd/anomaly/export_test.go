package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// contents returns the files below a folder and their contents.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(dir, path)
			files[filepath.ToSlash(name)] = string(read(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestExport_WritesTheSameRepositoryFromEveryFormatOfAModel(t *testing.T) {
	dir := unpacked(t, smallModel(t))
	var first map[string]string
	for _, model := range []string{smallModel(t), filepath.Join(dir, "autoencoder.pt"), filepath.Join(dir, "autoencoder.onnx")} {
		repository := filepath.Join(t.TempDir(), "new", "models")
		if r := run(t, "export", model, "--triton", repository); r.status != exitNormal || r.stdout+r.stderr != "" {
			t.Fatalf("%s: exit %d: %s%s", model, r.status, r.stdout, r.stderr)
		}
		files := contents(t, repository)
		if first == nil {
			first = files
		} else if !reflect.DeepEqual(files, first) {
			t.Errorf("%s makes another repository", model)
		}
	}
	want := []string{"anomaly/1/model.onnx", "anomaly/config.pbtxt", "anomaly_image/1/model.onnx", "anomaly_image/config.pbtxt"}
	var got []string
	for name := range first {
		got = append(got, name)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the files are %v", got)
	}
	for name, of := range map[string]string{"anomaly": "autoencoder.onnx", "anomaly_image": "autoencoder_image.onnx"} {
		if first[name+"/1/model.onnx"] != string(read(t, filepath.Join(dir, of))) {
			t.Errorf("%s is not %s of the model's zip", name, of)
		}
	}
}

// tritonView is the output of testdata/triton_config.py.
type tritonView struct {
	Config struct {
		Name            string
		Platform        string
		MaxBatchSize    int             `json:"max_batch_size"`
		DynamicBatching *map[string]any `json:"dynamic_batching"`
		Parameters      map[string]struct {
			StringValue string `json:"string_value"`
		}
	}
	Described, Declared struct{ Inputs, Outputs []tritonTensor }
	Results             []struct {
		Datatype string
		Shape    []int
	}
}

type tritonTensor struct {
	Name, Datatype string
	Dims           []int
	OfTheFile      []int `json:"of_the_file"`
}

// readByTriton reads an entry with Triton's schema, and runs it on a batch of 3
// or on an image of 5×7 pixels.
func readByTriton(t *testing.T, entry string) tritonView {
	t.Helper()
	interpreter := python(t)
	if out, err := exec.Command(interpreter, "-c", "from tritonclient.grpc import model_config_pb2").CombinedOutput(); err != nil {
		t.Skipf("this Python has no tritonclient, testdata/requirements.txt names it: %s", bytes.TrimSpace(out))
	}
	r := finish(t, exec.Command(interpreter, "../../testdata/triton_config.py", entry, "3", "5", "7"))
	var view tritonView
	if err := json.Unmarshal([]byte(r.stdout), &view); err != nil || r.status != 0 {
		t.Fatalf("exit %d, %v: %s%s", r.status, err, r.stdout, r.stderr)
	}
	return view
}

func TestExport_ConfigurationMatchesTritonsSchemaAndTheFile(t *testing.T) {
	const classes = `["gut","Riß \"1\" \\ <x>\n"]`
	dir := t.TempDir()
	metadata := write(t, dir, "metadata.json", []byte(`{"threshold": 0.5, "decision": {"measure": "mse", "threshold": 0.0625}, "class_names": `+classes+`}`))
	repository := filepath.Join(dir, "models")
	if r := run(t, "export", smallModel(t), "--triton", repository, "--name", "tiles-1.a", "--metadata", metadata); r.status != exitNormal {
		t.Fatal(r.stderr)
	}
	preprocessing := `{"color_mode":"RGB","resize":"pillow-bilinear","scale":0.00392156862745098,"layout":"NCHW","orientation":"exif"}`
	for _, c := range []struct {
		name     string
		maxBatch int
		inside   string
		inputs   []tritonTensor
		outputs  []tritonTensor
		shapes   [][]int
	}{
		{"tiles-1.a", 64, "false",
			[]tritonTensor{{"image", "FP32", []int{3, 32, 32}, []int{-1, 3, 32, 32}}},
			[]tritonTensor{{"reconstruction", "FP32", []int{3, 32, 32}, []int{-1, 3, 32, 32}}, {"reconstruction_error", "FP32", []int{1}, []int{-1}}},
			[][]int{{3, 3, 32, 32}, {3}}},
		{"tiles-1.a_image", 0, "true",
			[]tritonTensor{{"image", "UINT8", []int{-1, -1, 3}, []int{-1, -1, 3}}},
			[]tritonTensor{{"reconstruction_error", "FP32", []int{1}, []int{1}}, {"is_anomaly", "BOOL", []int{1}, []int{1}}, {"anomaly_map", "FP32", []int{32, 32}, []int{32, 32}}},
			[][]int{{1}, {1}, {32, 32}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := readByTriton(t, filepath.Join(repository, c.name))
			if v.Config.Name != c.name || v.Config.Platform != "onnxruntime_onnx" || v.Config.MaxBatchSize != c.maxBatch || (v.Config.DynamicBatching != nil) != (c.maxBatch > 0) {
				t.Errorf("the configuration is %+v", v.Config)
			}
			if !reflect.DeepEqual(v.Described.Inputs, c.inputs) || !reflect.DeepEqual(v.Described.Outputs, c.outputs) {
				t.Errorf("it describes %+v", v.Described)
			}
			for i, d := range append(slices.Clone(v.Described.Inputs), v.Described.Outputs...) {
				declared := append(slices.Clone(v.Declared.Inputs), v.Declared.Outputs...)
				d.Dims = nil // the declaration in the file has none
				if i >= len(declared) || !reflect.DeepEqual(d, declared[i]) {
					t.Errorf("it describes %+v, the file declares %+v", d, declared)
				}
				// Clients of the Open Inference Protocol can use the name as it is.
				if !regexp.MustCompile(`^[a-z_]+$`).MatchString(d.Name) {
					t.Errorf("the name %q", d.Name)
				}
			}
			if len(v.Results) != len(c.shapes) {
				t.Fatalf("the results are %+v", v.Results)
			}
			for i, r := range v.Results {
				if r.Datatype != c.outputs[i].Datatype || !slices.Equal(r.Shape, c.shapes[i]) {
					t.Errorf("%s is %+v, expected the shape %v", c.outputs[i].Name, r, c.shapes[i])
				}
			}
			parameters := map[string]string{}
			for key, value := range v.Config.Parameters {
				parameters[key] = value.StringValue
			}
			var names, wanted []string
			if err := json.Unmarshal([]byte(parameters["class_names"]), &names); err != nil {
				t.Errorf("class names: %v", err)
			}
			if err := json.Unmarshal([]byte(classes), &wanted); err != nil || !slices.Equal(names, wanted) {
				t.Errorf("class names %q, expected %q, %v", names, wanted, err)
			}
			delete(parameters, "class_names")
			if want := map[string]string{
				"model_type": "autoencoder", "measure": "mse", "threshold": "0.0625", "image_size": "32",
				"preprocessing": preprocessing, "preprocessing_inside": c.inside,
			}; !reflect.DeepEqual(parameters, want) {
				t.Errorf("the parameters are %v", parameters)
			}
		})
	}
}

func TestExport_ReplacesEntriesOnlyWithForce(t *testing.T) {
	repository := t.TempDir()
	other := filepath.Join(repository, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, other, "config.pbtxt", []byte("mine"))
	export := func(more ...string) ran {
		return run(t, append([]string{"export", smallModel(t), "--triton", repository}, more...)...)
	}
	if r := export(); r.status != exitNormal {
		t.Fatal(r.stderr)
	}
	fresh := contents(t, repository)
	for _, name := range []string{"anomaly", "anomaly_image"} { // changed, and with one more file
		write(t, filepath.Join(repository, name), "config.pbtxt", []byte("changed"))
		write(t, filepath.Join(repository, name), "notes.txt", []byte("more"))
	}
	changed := contents(t, repository)
	export().refused(t, "anomaly: it exists", "--force")
	if err := os.RemoveAll(filepath.Join(repository, "anomaly")); err != nil {
		t.Fatal(err)
	}
	export().refused(t, "anomaly_image: it exists", "--force") // the second entry alone is enough
	for name, text := range contents(t, repository) {
		if changed[name] != text {
			t.Errorf("%s was changed", name)
		}
	}
	if r := export("--force"); r.status != exitNormal {
		t.Fatal(r.stderr)
	}
	if got := contents(t, repository); !reflect.DeepEqual(got, fresh) {
		t.Errorf("with --force there are %d files", len(got))
	}
	if got := names(t, repository); !slices.Equal(got, []string{"anomaly", "anomaly_image", "other"}) {
		t.Errorf("the repository holds %v", got)
	}
}

func TestExport_RejectsInOneSentenceAndWritesNothing(t *testing.T) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "mine")
	if err := os.Mkdir(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, mine, "letter.txt", []byte("dear"))
	prose := write(t, dir, "prose.txt", []byte("not a model"))
	before := contents(t, dir)
	model := smallModel(t)
	cases := map[string]struct {
		args []string
		want string
	}{
		"no repository":                   {[]string{model}, "triton"},
		"no model":                        {[]string{"--triton", dir}, "arg"},
		"prose as model":                  {[]string{prose, "--triton", dir}, "prose.txt"},
		"prose as metadata":               {[]string{model, "--metadata", prose, "--triton", dir}, "prose.txt"},
		"a file as repository":            {[]string{model, "--triton", prose}, "prose.txt"},
		"a folder that is no entry":       {[]string{model, "--triton", dir, "--name", "mine", "--force"}, "mine: it holds no config.pbtxt"},
		"a file in the place of an entry": {[]string{model, "--triton", dir, "--name", "prose.txt", "--force"}, "prose.txt: it holds no config.pbtxt"},
	}
	for _, name := range []string{"", ".", "..", "../x", "a/b", `a\b`, "/tmp/x", ".hidden", "-x", "a b", "a\n", "ä", strings.Repeat("a", 101)} {
		cases["the name "+name] = struct {
			args []string
			want string
		}{[]string{model, "--triton", filepath.Join(dir, "new"), "--name=" + name}, "--name: not a name for a model"}
	}
	for name, c := range cases {
		run(t, append([]string{"export"}, c.args...)...).refused(t, c.want)
		if got := contents(t, dir); !reflect.DeepEqual(got, before) || len(names(t, dir)) != 2 {
			t.Fatalf("%s: there is %v", name, names(t, dir))
		}
	}
}
