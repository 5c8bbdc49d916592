(module
  (type $plain (func))
  (memory (export "memory") 1)
  (func (export "_start"))
  (func (param (ref $plain))
    (call_ref $plain (local.get 0))))
