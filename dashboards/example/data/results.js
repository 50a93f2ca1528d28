GALLERY.put("results",[]);
