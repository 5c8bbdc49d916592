(module
  (func (export "memory"))
  (func (export "_start")))
