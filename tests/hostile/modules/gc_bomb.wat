(module
  (type $bytes (array (mut i8)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $again
      (drop (array.new $bytes (i32.const 0) (i32.const 100000000)))
      (br $again))))
