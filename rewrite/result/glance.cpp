// Whether the weights of a model are those that they were: in C++, for at each call Python takes 0.3 to 0.6 microseconds
// for each tensor, waiting for memory most of the time. The processor looks at many of them at once here.
#include <Python.h>

#include <c10/core/TensorImpl.h>

#include <cstring>
#include <vector>

namespace {

// A tensor as Python has it: its torch tensor comes first, which is a pointer.
c10::TensorImpl* held(PyObject* object) {
  c10::TensorImpl* found;
  std::memcpy(&found, reinterpret_cast<const char*>(object) + sizeof(PyObject), sizeof(found));
  return found;
}

const void* memory_of(c10::StorageImpl* storage) { return storage->_mutable_data_ptr_no_checks().get(); }

constexpr size_t AHEAD = 24;

void touch(const void* memory) { __builtin_prefetch(memory); }

// What a dict holds, in order.
struct Values {
  PyObject* dict;
  const void* table;  // where the dict had its entries, to have it fetched
  std::vector<PyObject*> objects;

  bool changed() const {
    if (PyDict_Size(dict) != static_cast<Py_ssize_t>(objects.size())) return true;
    PyObject* value;
    Py_ssize_t at = 0;
    for (PyObject* object : objects)
      if (!PyDict_Next(dict, &at, nullptr, &value) || value != object) return true;
    return false;
  }
  void expect() const {
    touch(dict), touch(objects.data());
    for (int line = 0; line < 3; line++) touch(static_cast<const char*>(table) + 64 * line);
  }
};

struct Written {
  PyObject* tensor;
  c10::TensorImpl* impl;
  uint32_t version;

  bool changed() const {
    return held(tensor) != impl || impl->version_counter().current_version() != version;
  }
  void expect() const { touch(tensor), touch(&impl->version_counter()); }
};

struct Placed {
  PyObject* tensor;
  c10::TensorImpl* impl;
  c10::StorageImpl* storage;
  const void* memory;
  int64_t offset;

  bool changed() const {
    return held(tensor) != impl || impl->unsafe_storage().unsafeGetStorageImpl() != storage ||
           memory_of(storage) != memory || impl->storage_offset() != offset;
  }
  void expect() const { touch(tensor), touch(&impl->unsafe_storage()), touch(storage); }
};

struct Window {
  const char* memory;
  int64_t bytes, at;  // in what is remembered
};

// Whether any differs; what comes later is fetched meanwhile.
template <typename Item>
bool any_changed(const std::vector<Item>& items) {
  const size_t count = items.size();
  for (size_t i = 0; i < count; i++) {
    if (i + AHEAD < count) items[i + AHEAD].expect();
    if (items[i].changed()) return true;
  }
  return false;
}

struct Glance {
  std::vector<Values> values;
  std::vector<Written> written;
  std::vector<Placed> placed;
  std::vector<Window> windows;
  std::vector<char> remembered;

  bool changed() const {
    if (any_changed(written)) return true;
    if (any_changed(values)) return true;
    // the places come before the bytes, which are read where the tensors lay at first
    if (any_changed(placed)) return true;
    for (size_t i = 0; i < windows.size(); i++) {
      if (i + AHEAD < windows.size()) touch(windows[i + AHEAD].memory);
      if (std::memcmp(windows[i].memory, remembered.data() + windows[i].at, windows[i].bytes)) return true;
    }
    return false;
  }
};

}  // namespace

// To be called with the interpreter's lock, which ctypes.PyDLL does. Whoever has a glance keeps all objects alive.
extern "C" {

Glance* glance_new() { return new Glance; }

void glance_delete(Glance* glance) { delete glance; }

void glance_values(Glance* glance, PyObject* dict) {
  Values some{dict, reinterpret_cast<PyDictObject*>(dict)->ma_keys, {}};
  PyObject* value;
  for (Py_ssize_t at = 0; PyDict_Next(dict, &at, nullptr, &value);) some.objects.push_back(value);
  glance->values.push_back(std::move(some));
}

// The following take where the object's torch tensor is; 0 where the object, or the tensor, is of another kind.
int glance_written(Glance* glance, PyObject* tensor, c10::TensorImpl* impl) {
  if (held(tensor) != impl || impl->is_inference()) return 0;
  glance->written.push_back({tensor, impl, impl->version_counter().current_version()});
  return 1;
}

int glance_placed(Glance* glance, PyObject* tensor, c10::TensorImpl* impl) {
  if (held(tensor) != impl || !impl->has_storage()) return 0;
  c10::StorageImpl* storage = impl->unsafe_storage().unsafeGetStorageImpl();
  glance->placed.push_back({tensor, impl, storage, memory_of(storage), impl->storage_offset()});
  return 1;
}

void glance_window(Glance* glance, const char* memory, int64_t bytes) {
  glance->windows.push_back({memory, bytes, static_cast<int64_t>(glance->remembered.size())});
  glance->remembered.insert(glance->remembered.end(), memory, memory + bytes);
}

int glance_changed(const Glance* glance) { return glance->changed(); }
}
